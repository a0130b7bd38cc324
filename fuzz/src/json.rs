//! JSON looked at another way than Posthaste does: a character at a time, and slowly.

use std::collections::HashSet;

use serde_json::value::RawValue;

/// Whether `text` is one JSON value, whitespace around it allowed.
pub fn is_valid(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

/// How deep arrays and objects of `text`, which is JSON, are nested.
pub fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    outside_of_strings(text, |character| match character {
        '[' | '{' => {
            depth += 1;
            deepest = deepest.max(depth);
        }
        ']' | '}' => depth -= 1,
        _ => {}
    });
    deepest
}

/// `text`, which is JSON, without insignificant whitespace.
pub fn compact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut in_string, mut escaped) = (false, false);
    for character in text.chars() {
        if in_string {
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
        } else if matches!(character, ' ' | '\t' | '\n' | '\r') {
            continue;
        } else {
            in_string = character == '"';
        }
        out.push(character);
    }
    out
}

/// The numbers in `text`, which is JSON, as they are written.
pub fn numbers(text: &str) -> HashSet<String> {
    let mut found = HashSet::new();
    let mut number = String::new();
    let mut end = |number: &mut String| {
        if number.starts_with(|first: char| first.is_ascii_digit() || first == '-') {
            found.insert(number.clone());
        }
        number.clear();
    };
    outside_of_strings(text, |character| match character {
        '0'..='9' | '+' | '-' | '.' | 'e' | 'E' => number.push(character),
        _ => end(&mut number),
    });
    end(&mut number);
    found
}

/// Calls `each` with every character that is not in a string; a string's closing quote is one.
fn outside_of_strings(text: &str, mut each: impl FnMut(char)) {
    let (mut in_string, mut escaped) = (false, false);
    for character in text.chars() {
        if in_string {
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
            if !in_string {
                each(character);
            }
        } else {
            in_string = character == '"';
            each(character);
        }
    }
}
