//! Held-out images with what the model says about them, as one drawing.

use super::config::ImagesTask;
use super::predict::{answer, class_color, overlay, shown};
use crate::report::escape;
use crate::run::Trained;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use deq_data::{Example, Picture, Target, VisionSplits, VisionTask};

/// Cells in rows of equal height.
struct Grid {
    columns: usize,
    /// The longer side of an image.
    side: usize,
    /// Width and height of a cell.
    cell: [usize; 2],
}

/// Images shown, spread over the held-out ones.
const CLASSIFIED: usize = 32;
const SEGMENTED: usize = 6;
/// Space between images.
const GAP: usize = 16;
/// Height of a line of text.
const LINE: usize = 18;

impl Grid {
    fn new(columns: usize, side: usize, height: usize) -> Self {
        Self {
            columns,
            side,
            cell: [side + GAP, height + GAP + LINE],
        }
    }

    /// The cells, moved down by `top`, and their height.
    fn place(&self, cells: &[String], top: usize) -> (String, usize) {
        let [width, height] = self.cell;
        let groups = cells.iter().enumerate().map(|(place, cell)| {
            let (x, y) = (place % self.columns * width, place / self.columns * height);
            format!("<g transform=\"translate({x} {})\">{cell}</g>\n", top + y)
        });
        let rows = cells.len().div_ceil(self.columns);
        (groups.collect(), rows * height)
    }

    /// An image with a line of text below it.
    fn cell(&self, image: &Picture, text: &str, color: &str) -> String {
        // Large ones are shrunk to what can be seen.
        let longest = image.width().max(image.height());
        let scaled = |length: usize| (length * 2 * self.side / longest).max(1);
        let png = match longest > 2 * self.side {
            true => {
                let size = (scaled(image.width()), scaled(image.height()));
                image.resized(image.window(), size).to_png()
            }
            false => image.to_png(),
        };
        let [width, height] = self.cell;
        format!(
            "<image x=\"{margin}\" y=\"{margin}\" width=\"{side}\" height=\"{high}\" \
             style=\"image-rendering:pixelated\" href=\"data:image/png;base64,{png}\"/>\
             <text x=\"{middle}\" y=\"{line}\" fill=\"{color}\">{text}</text>",
            margin = GAP / 2,
            side = self.side,
            high = height - GAP - LINE,
            png = BASE64_STANDARD.encode(png),
            middle = width / 2,
            line = height - GAP / 2 - 4,
            text = escape(text)
        )
    }
}

/// The drawing as SVG text that needs nothing else: of each class prediction, the image with the
/// name, in red with the right one if it is wrong; of each segmentation, the image, its labels and
/// the prediction.
pub(super) fn draw(trained: &Trained<ImagesTask>, data: &VisionSplits) -> String {
    let task = trained.recipe.task.model.task();
    let wanted = match task {
        VisionTask::Classification => CLASSIFIED,
        VisionTask::Segmentation => SEGMENTED,
    };
    let count = wanted.min(data.test.len());
    // One further each time, since classes may follow one another regularly. Broken files are left
    // out here as everywhere.
    let examples: Vec<Example> = (0..count)
        .filter_map(|place| {
            let stride = data.test.len() / count;
            let index = place * data.test.len() / count + place % stride;
            data.test.example(index).ok()
        })
        .collect();
    let grid = match (task, examples.first()) {
        (VisionTask::Segmentation, Some(first)) => {
            let (width, height) = (first.picture.width(), first.picture.height());
            Grid::new(3, 280, 280 * height / width.max(height))
        }
        _ => Grid::new(8, 96, 96),
    };
    let mut cells: Vec<String> = Vec::new();
    for example in examples {
        let image = &example.picture;
        let (answer, map) = answer(trained, image);
        match (example.target, map) {
            (Target::Map(labels), Some(found)) => {
                cells.push(grid.cell(image, "", "black"));
                for (map, text) in [(&labels, "labels"), (&found, "predicted")] {
                    cells.push(grid.cell(&overlay(image, map), text, "black"));
                }
            }
            (Target::Class(class), _) => {
                let right = &data.test.classes()[usize::from(class)];
                let found = answer.classes.first().map_or("", |(name, _)| name);
                let (text, color) = match found == right {
                    true => (found.to_owned(), "black"),
                    false => (format!("{found}, not {right}"), "#b00"),
                };
                cells.push(grid.cell(&shown(&trained.recipe.task, image), &text, color));
            }
            (Target::Map(_), None) => {}
        }
    }
    let (mut body, mut height) = grid.place(&cells, 0);
    if task == VisionTask::Segmentation {
        // What the colours mean.
        let legend = Grid::new(8, 95, 20);
        let names = trained.recipe.task.classes.iter().enumerate();
        let cells: Vec<String> = names
            .map(|(id, name)| {
                let color = Picture::filled(95, 20, class_color(id as u8));
                legend.cell(&color, name, "black")
            })
            .collect();
        let (placed, more) = legend.place(&cells, height);
        body += &placed;
        height += more;
    }
    let width = grid.columns * grid.cell[0];
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"10\" \
         text-anchor=\"middle\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         {body}</svg>\n"
    )
}
