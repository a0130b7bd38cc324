//! Reading what `/metrics` tells.

/// The sum of a family's series that have all of these labels, each as `name="value"`; `None` where there are none.
pub fn sum(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let of_family = text.lines().filter_map(|line| line.strip_prefix(name));
    let wanted = of_family.filter(|rest| rest.starts_with(['{', ' ']));
    let wanted = wanted.filter(|rest| labels.iter().all(|label| rest.contains(label)));
    wanted
        .map(|rest| value(rest).unwrap_or_else(|| panic!("no number: {name}{rest}")))
        .reduce(|one, next| one + next)
}

fn value(series: &str) -> Option<f64> {
    series.rsplit(' ').next()?.parse().ok()
}
