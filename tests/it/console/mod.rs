//! The console: who gets in, what a page shows and does, and how it looks in a real browser.

mod access;
mod browser;
mod hostile;
mod pages;
mod screenshots;
