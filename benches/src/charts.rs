//! Charts: for each case a panel of bars, one for each contestant, with a line from the least to the
//! most that it reached.

use std::io;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::contestants::{BY_HAND, RUDUO};
use crate::record::{Record, Spread, again};
use crate::report::number;

type Area<'p> = DrawingArea<SVGBackend<'p>, Shift>;

/// Sizes in pixels.
const PANEL_WIDTH: u32 = 420;
const HEADING: i32 = 26;
const ROW: i32 = 18;
const NAMES: i32 = 105;
const NUMBERS: i32 = 120;

/// A bar that would be longer than so many times ruduo's is cut, lest the others vanish.
const LONGEST: f64 = 8.0;

const OURS: RGBColor = RGBColor(200, 80, 40);
const LIMIT: RGBColor = RGBColor(90, 90, 90);
const OTHERS: RGBColor = RGBColor(120, 150, 190);

struct Panel {
    title: String,
    /// The hand-written loop is 1, and has a line.
    relative: bool,
    bars: Vec<(String, Spread)>,
}

/// Draws the metrics of a record; false if there is nothing to draw.
pub(crate) fn draw(record: &Record, metrics: &[&str], path: &Path) -> io::Result<bool> {
    let panels: Vec<Panel> = metrics
        .iter()
        .flat_map(|metric| record.cases().into_iter().map(|case| panel(record, case, metric)))
        .filter(|panel| !panel.bars.is_empty())
        .collect();
    let Some(rows) = panels.iter().map(|panel| panel.bars.len()).max() else { return Ok(false) };
    let columns = panels.len().min(2);
    let lines = panels.len().div_ceil(columns);
    let height = HEADING + ROW * rows as i32 + 14;
    let size = (PANEL_WIDTH * columns as u32, height as u32 * lines as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    let paint = || {
        root.fill(&WHITE)?;
        for (panel, area) in panels.iter().zip(root.split_evenly((lines, columns))) {
            panel.paint(&area)?;
        }
        root.present()
    };
    paint().map_err(|e| io::Error::other(format!("cannot draw {}: {e}", path.display())))?;
    Ok(true)
}

fn panel(record: &Record, case: &str, metric: &str) -> Panel {
    let relative = record.is_relative(case, metric);
    let figures = |contestant: &str| {
        if relative {
            record.ratios(case, metric, contestant)
        } else {
            record.figures(case, metric, contestant)
        }
    };
    let twin = again(record.baseline());
    let bars = record
        .contestants()
        .into_iter()
        .filter(|contestant| *contestant != twin)
        .filter_map(|contestant| Some((contestant.to_owned(), figures(contestant)?)))
        .collect();
    let of = if relative { format!(", {} = 1", record.baseline()) } else { String::new() };
    Panel { title: format!("{case}: {metric}{of}"), relative, bars }
}

impl Panel {
    fn paint(&self, area: &Area<'_>) -> Result<(), DrawingAreaErrorKind<io::Error>> {
        let bold = ("sans-serif", 13).into_font().style(FontStyle::Bold);
        area.draw(&Text::new(self.title.clone(), (8, 6), bold))?;
        let room = PANEL_WIDTH as i32 - NAMES - NUMBERS;
        let full = self.full();
        let x = |value: f64| NAMES + ((value / full).clamp(0.0, 1.0) * f64::from(room)) as i32;
        for (i, (name, figures)) in self.bars.iter().enumerate() {
            let top = HEADING + ROW * i as i32;
            let middle = top + ROW / 2 - 1;
            let color = match name.as_str() {
                RUDUO => OURS,
                BY_HAND => LIMIT,
                _ => OTHERS,
            };
            let font = ("sans-serif", 12).into_font();
            area.draw(&Text::new(name.clone(), (8, top + 2), font.clone()))?;
            let bar = [(NAMES, top + 2), (x(figures.median), top + ROW - 4)];
            area.draw(&Rectangle::new(bar, color.filled()))?;
            let range = [(x(figures.min), middle), (x(figures.max), middle)];
            area.draw(&PathElement::new(range, BLACK))?;
            let cut = if figures.median > full { " »" } else { "" };
            let text = format!("{}{cut}", number(figures.median));
            let end = x(figures.max.max(figures.median)) + 6;
            area.draw(&Text::new(text, (end, top + 2), font))?;
        }
        if self.relative {
            let bottom = HEADING + ROW * self.bars.len() as i32;
            area.draw(&PathElement::new([(x(1.0), HEADING - 2), (x(1.0), bottom)], LIMIT))?;
        }
        Ok(())
    }

    /// What the longest bar stands for.
    fn full(&self) -> f64 {
        let most = self.bars.iter().map(|(_, figures)| figures.max).fold(0.0, f64::max);
        let ours = self.bars.iter().find(|(name, _)| name == RUDUO);
        let bound = ours.map_or(most, |(_, ours)| ours.median * LONGEST);
        most.min(bound).max(f64::MIN_POSITIVE)
    }
}
