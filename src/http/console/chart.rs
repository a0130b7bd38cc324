//! Pictures of figures over time, as the paths of an SVG. Templates write the elements around them; all that comes from
//! here is numbers.

use std::fmt::Write as _;

/// Width and height of a sparkline.
pub(super) const SPARK: (f64, f64) = (120.0, 24.0);
/// Width and height of a chart.
pub(super) const CHART: (f64, f64) = (320.0, 72.0);

/// One line of a picture.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    /// The line, as a path.
    pub line: String,
    /// What is below it, as a path.
    pub area: String,
}

/// A picture with one line or several on the same scale.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chart {
    pub width: f64,
    pub height: f64,
    pub series: Vec<Series>,
    /// What the top stands for.
    pub top: f64,
    /// Nothing is above zero.
    pub is_flat: bool,
}

impl Chart {
    /// Lines through `all`, each a list of as many points, oldest first; `None` where nothing is known. The scale goes
    /// from zero to the largest, at least to `least_top`.
    pub fn new((width, height): (f64, f64), all: &[&[Option<f64>]], least_top: f64) -> Self {
        let largest = all.iter().flat_map(|points| points.iter().flatten()).copied().fold(0.0, f64::max);
        let top = largest.max(least_top);
        let series = all.iter().map(|points| series(points, width, height, top)).collect();
        Self { width, height, series, top, is_flat: largest <= 0.0 }
    }

    /// Whether there is anything to see.
    pub fn is_empty(&self) -> bool {
        self.series.iter().all(|series| series.line.is_empty())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred points")]
fn series(points: &[Option<f64>], width: f64, height: f64, top: f64) -> Series {
    /// Room for the line's own width and the point at its end.
    const MARGIN: f64 = 2.0;
    let step = (width - 2.0 * MARGIN) / (points.len().max(2) - 1) as f64;
    let x = |index: usize| MARGIN + index as f64 * step;
    let y = |value: f64| {
        let share = if top > 0.0 { (value / top).clamp(0.0, 1.0) } else { 0.0 };
        height - MARGIN - share * (height - 2.0 * MARGIN)
    };
    let (mut line, mut area, mut began) = (String::new(), String::new(), None);
    let floor = height - MARGIN;
    let close = |area: &mut String, began: Option<usize>, last: usize| {
        if let Some(first) = began {
            // Writing to a String can't fail.
            let _ = write!(area, "L{:.1} {floor:.1}L{:.1} {floor:.1}Z", x(last), x(first));
        }
    };
    for (index, point) in points.iter().enumerate() {
        match point {
            Some(value) => {
                let (at, up) = (x(index), y(*value));
                let mark = if began.is_some() { 'L' } else { 'M' };
                let _ = write!(line, "{mark}{at:.1} {up:.1}");
                let _ = write!(area, "{mark}{at:.1} {up:.1}");
                // A point by itself is a dot: a line of no length, with round ends.
                if began.is_none() && points.get(index + 1).is_none_or(Option::is_none) {
                    let _ = write!(line, "l0 0");
                }
                began.get_or_insert(index);
            }
            None => close(&mut area, began.take(), index.saturating_sub(1)),
        }
    }
    close(&mut area, began, points.len().saturating_sub(1));
    Series { line, area }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_where_nothing_is_known() {
        let chart = Chart::new((14.0, 14.0), &[&[Some(0.0), Some(10.0), None, Some(5.0)]], 0.0);
        let series = &chart.series[0];
        assert_eq!(series.line, "M2.0 12.0L5.3 2.0M12.0 7.0l0 0");
        assert_eq!(series.area, "M2.0 12.0L5.3 2.0L5.3 12.0L2.0 12.0ZM12.0 7.0L12.0 12.0L12.0 12.0Z");
    }

    #[test]
    fn nothing_is_an_empty_picture() {
        let chart = Chart::new(SPARK, &[&[], &[None]], 1.0);
        assert!(chart.is_empty());
        assert!((chart.top - 1.0).abs() < f64::EPSILON);
    }
}
