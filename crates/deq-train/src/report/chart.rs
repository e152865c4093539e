//! Line charts as SVG text.

use super::{Chart, Heat};
use crate::error::TrainError;
use plotters::prelude::*;

/// Distinct also for readers who do not tell red from green (Okabe and Ito).
const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
const SIZE: (u32, u32) = (640, 360);

impl Chart {
    /// The chart as an `<svg>` element; `None` if no series has a point to show.
    ///
    /// Points that are not finite, or not positive on a logarithmic axis, are left out.
    pub(crate) fn svg(mut self) -> Result<Option<String>, TrainError> {
        self.keep_what_can_be_shown();
        if self.series.is_empty() {
            return Ok(None);
        }
        side_by_side(&[self]).map(Some)
    }

    fn keep_what_can_be_shown(&mut self) {
        let log = self.log;
        let shown = |x: f64, y: f64| x.is_finite() && y.is_finite() && (!log || y > 0.0);
        for series in &mut self.series {
            series.points.retain(|(x, y)| shown(*x, *y));
        }
        self.series.retain(|series| !series.points.is_empty());
    }

    fn draw<'a>(
        &'a self,
        area: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
    ) -> Result<(), Box<dyn std::error::Error + 'a>> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let (x0, x1) = range(points().map(|p| p.0));
        let (y0, y1) = range(points().map(|p| p.1));
        let mut builder = ChartBuilder::on(area);
        builder
            .caption(&self.title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(38)
            .y_label_area_size(62);
        // The two axes are different types in plotters, hence the macro.
        macro_rules! plot {
            ($y:expr, $label:expr) => {{
                let mut chart = builder.build_cartesian_2d(x0..x1, $y)?;
                chart
                    .configure_mesh()
                    .x_desc(&self.x)
                    .y_desc(&self.y)
                    .x_label_formatter(&|x| tick(*x))
                    .y_label_formatter(&$label)
                    .light_line_style(WHITE)
                    .draw()?;
                for (index, series) in self.series.iter().enumerate() {
                    let color = COLORS[index % COLORS.len()];
                    let style = color.stroke_width(2);
                    if let [point] = series.points[..] {
                        chart.draw_series([Circle::new(point, 3, color.filled())])?;
                    }
                    chart
                        .draw_series(LineSeries::new(series.points.iter().copied(), style))?
                        .label(&series.name)
                        .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
                }
                chart
                    .configure_series_labels()
                    .background_style(WHITE.mix(0.8))
                    .border_style(BLACK.mix(0.2))
                    .position(SeriesLabelPosition::UpperRight)
                    .draw()?;
            }};
        }
        if self.log {
            plot!((y0 * 0.8..y1 * 1.25).log_scale(), |y: &f64| tick(*y));
        } else {
            let margin = 0.05 * (y1 - y0);
            plot!(y0 - margin..y1 + margin, |y: &f64| tick(*y));
        }
        Ok(())
    }
}

/// Charts from left to right as one `<svg>` element; each must have a point to show.
pub fn side_by_side(charts: &[Chart]) -> Result<String, TrainError> {
    let mut charts = charts.to_vec();
    for chart in &mut charts {
        chart.keep_what_can_be_shown();
        if chart.series.is_empty() {
            return Err(TrainError::Chart {
                title: chart.title.clone(),
                reason: "it has no point".to_owned(),
            });
        }
    }
    let mut svg = String::new();
    draw_all(&charts, &mut svg).map_err(|reason| TrainError::Chart {
        title: charts.iter().map(|chart| chart.title.as_str()).collect(),
        reason: reason.to_string(),
    })?;
    Ok(svg)
}

fn draw_all(charts: &[Chart], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let size = (SIZE.0 * charts.len() as u32, SIZE.1);
    let area = SVGBackend::with_string(svg, size).into_drawing_area();
    area.fill(&WHITE)?;
    for (chart, area) in charts.iter().zip(area.split_evenly((1, charts.len()))) {
        chart.draw(&area).map_err(|reason| reason.to_string())?;
    }
    area.present().map_err(|reason| reason.to_string())?;
    Ok(())
}

impl Heat<'_> {
    /// The image as an `<svg>` element.
    pub fn svg(&self) -> Result<String, TrainError> {
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|reason| TrainError::Chart {
            title: self.title.clone(),
            reason: reason.to_string(),
        })?;
        Ok(svg)
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error + '_>> {
        let rows = self.values.len().div_ceil(self.columns) as i32;
        let columns = self.columns as i32;
        let area = SVGBackend::with_string(svg, (320, 340)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 14))
            .margin(8)
            .build_cartesian_2d(0..columns, rows..0)?;
        let mut mesh = chart.configure_mesh();
        mesh.disable_mesh().disable_axes().draw()?;
        let cells = self.values.iter().enumerate();
        let cells = cells.filter(|(_, value)| **value > 0.0);
        chart.draw_series(cells.map(|(index, value)| {
            let (row, column) = (index as i32 / columns, index as i32 % columns);
            let share = (value / self.largest.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
            let shade = |full: f64| (255.0 - share * (255.0 - full)) as u8;
            let color = RGBColor(shade(0.0), shade(68.0), shade(136.0));
            Rectangle::new([(column, row), (column + 1, row + 1)], color.filled())
        }))?;
        area.present()?;
        Ok(())
    }
}

/// The smallest and the largest value, set apart if they coincide.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let wider = |(low, high): (f64, f64), value: f64| (low.min(value), high.max(value));
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), wider);
    let half = |value: f64| 0.5 * value.abs().max(1e-9);
    match high > low {
        true => (low, high),
        false => (low - half(low), high + half(high)),
    }
}

fn tick(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        magnitude if !(1e-3..1e6).contains(&magnitude) => format!("{value:.0e}"),
        _ => {
            let text = format!("{value:.3}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Series;

    fn chart(log: bool, points: Vec<(f64, f64)>) -> Chart {
        Chart::new(
            "Loss",
            ["step", "nats"],
            log,
            vec![Series::new("train", points)],
        )
    }

    #[test]
    fn charts_draw_what_can_be_drawn() {
        for log in [false, true] {
            let svg = chart(log, vec![(1.0, 3.0), (2.0, f64::NAN), (3.0, 0.5)]);
            let svg = svg.svg().unwrap().unwrap();
            assert!(svg.starts_with("<svg") && svg.contains("train") && svg.contains("polyline"));
            assert!(!svg.contains("NaN"));
            assert!(chart(log, vec![(1.0, f64::NAN)]).svg().unwrap().is_none());
            assert!(chart(log, vec![(1.0, 2.0)]).svg().unwrap().is_some());
        }
        assert!(chart(true, vec![(1.0, 0.0)]).svg().unwrap().is_none());
    }
}
