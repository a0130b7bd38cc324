//! What others write is shown, and never runs.

use std::path::Path;

#[test]
fn no_template_turns_escaping_off() {
    let mut looked = 0;
    for entry in
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("templates/console")).expect("a folder")
    {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("a template");
        assert!(!text.contains("|safe") && !text.contains("| safe") && !text.contains("escape(\"none\")"));
        assert!(!text.contains("<script>") && !text.contains("style=\"") && !text.contains(" onclick="));
        looked += 1;
    }
    assert!(looked > 15);
}
