//! What is measured with.

/// Length of an event in bytes.
const EVENT_BYTES: usize = 500;

/// An event of tenant `acme` with [`EVENT_BYTES`].
pub fn event(id: &str) -> String {
    let mut text = format!(
        r#"{{"specversion":"1.0","id":"{id}","type":"order.created","source":"/shop","tenant":"acme","time":"2026-01-31T23:59:59Z","data":{{"order":{{"number":48151623,"currency":"EUR","total":1234.50,"paid":true}},"customer":{{"id":"cus_4815","name":"Ada Lovelace","country":"GB"}},"lines":[{{"sku":"A-1","quantity":2,"price":617.25}}],"note":""#
    );
    let end = r#""}}"#;
    let filler = EVENT_BYTES.saturating_sub(text.len() + end.len());
    text.extend(std::iter::repeat_n('x', filler));
    text.push_str(end);
    text
}
