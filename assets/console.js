// What htmx does not do by itself. Every page works without this file.
"use strict";

// A tab that nobody sees asks for nothing, and neither does a page on which a question is open or text is selected.
document.addEventListener("htmx:beforeRequest", (event) => {
  const live = event.detail.elt.hasAttribute("data-live");
  if (!live || event.detail.requestConfig.verb !== "get") return;
  const selected = String(document.getSelection()) !== "";
  const open = event.detail.elt.querySelector("details.confirm[open]");
  const typing = event.detail.elt.contains(document.activeElement) && document.activeElement.matches("input, select, textarea");
  if (document.hidden || selected || open || typing) event.preventDefault();
});

// What was opened stays open, and what had the focus keeps it, when a part of a page is replaced by its newer self.
let kept = null;
document.addEventListener("htmx:beforeSwap", (event) => {
  // A form that was not taken answers with a page that says why.
  const kind = event.detail.xhr.getResponseHeader("content-type") || "";
  if (event.detail.xhr.status >= 400 && kind.startsWith("text/html") && !event.detail.elt.hasAttribute("data-live")) {
    event.detail.shouldSwap = true;
    event.detail.isError = false;
  }
  const part = event.detail.target;
  const focused = document.activeElement;
  kept = {
    open: Array.from(part.querySelectorAll("details[id][open]"), (details) => details.id),
    focus: part.contains(focused) && (focused.id || focused.getAttribute("href")),
  };
});
document.addEventListener("htmx:afterSwap", () => {
  const flash = document.querySelector("[data-flash]");
  if (flash) {
    flash.focus();
  } else if (kept) {
    for (const id of kept.open) document.getElementById(id)?.setAttribute("open", "");
    if (kept.focus && document.activeElement === document.body) {
      (document.getElementById(kept.focus) || document.querySelector(`a[href="${CSS.escape(kept.focus)}"]`))?.focus({ preventScroll: true });
    }
  }
  kept = null;
});

// A question closes with Escape, and when another place is clicked.
const closeQuestions = (except) => {
  for (const details of document.querySelectorAll("details.confirm[open]")) if (details !== except) details.open = false;
};
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const open = document.querySelector("details.confirm[open]");
  closeQuestions(null);
  open?.querySelector("summary").focus();
});
document.addEventListener("click", (event) => closeQuestions(event.target.closest("details.confirm")));
