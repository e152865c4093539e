//! Held-out pictures with what the model says about them, as one picture.

use super::predict::{answer, class_color, overlay, shown};
use super::run::Trained;
use crate::error::TrainError;
use crate::report::escape;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use deq_data::{Picture, Target, VisionSplits, VisionTask};

/// Pictures shown, spread over the held-out ones.
const CLASSIFIED: usize = 32;
const SEGMENTED: usize = 8;
/// Side of a cell and of a picture in it.
const CELL: usize = 112;
const SIDE: usize = 88;
const COLUMNS: usize = 8;

/// The picture as SVG text that needs nothing else: of each class prediction, the picture with the name, in red with the right one if it is wrong; of each
/// segmentation, the picture, its labels and the prediction.
pub(super) fn draw(trained: &Trained, data: &VisionSplits) -> Result<String, TrainError> {
    let mut cells: Vec<String> = Vec::new();
    let wanted = match trained.recipe.model.task() {
        VisionTask::Classification => CLASSIFIED,
        VisionTask::Segmentation => SEGMENTED,
    };
    let count = wanted.min(data.test.len());
    for place in 0..count {
        // One further each time, since classes may follow one another regularly.
        let index = (place * data.test.len() / count + place) % data.test.len();
        // Broken files are left out here as everywhere.
        let Ok(example) = data.test.example(index) else {
            continue;
        };
        let answer = answer(trained, &example.picture);
        match (example.target, answer.map) {
            (Target::Map(labels), Some(found)) => {
                cells.push(cell(&example.picture, "", "black"));
                cells.push(cell(&overlay(&example.picture, &labels), "labels", "black"));
                cells.push(cell(
                    &overlay(&example.picture, &found),
                    "predicted",
                    "black",
                ));
                // Two of them to a row.
                cells.push(String::new());
            }
            (Target::Class(class), _) => {
                let right = &data.test.classes()[usize::from(class)];
                let found = answer.classes.first().map_or("", |(name, _)| name);
                let (text, color) = match found == right {
                    true => (found.to_owned(), "black"),
                    false => (format!("{found}, not {right}"), "#b00"),
                };
                cells.push(cell(
                    &shown(&trained.recipe, &example.picture),
                    &text,
                    color,
                ));
            }
            (Target::Map(_), None) => {}
        }
    }
    if trained.recipe.model.task() == VisionTask::Segmentation {
        cells.resize(cells.len().next_multiple_of(COLUMNS), String::new());
        // What the colours mean.
        cells.extend(
            trained.recipe.classes.iter().enumerate().map(|(id, name)| {
                cell(&Picture::filled(2, 1, class_color(id as u8)), name, "black")
            }),
        );
    }
    let rows = cells.len().div_ceil(COLUMNS);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" font-family=\"sans-serif\" \
         font-size=\"10\" text-anchor=\"middle\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        w = COLUMNS * CELL,
        h = rows * CELL
    );
    for (place, cell) in cells.iter().enumerate() {
        let (x, y) = (place % COLUMNS * CELL, place / COLUMNS * CELL);
        svg += &format!("<g transform=\"translate({x} {y})\">{cell}</g>\n");
    }
    Ok(svg + "</svg>\n")
}

/// A picture with a line of text below it.
fn cell(picture: &Picture, text: &str, color: &str) -> String {
    // Large ones are shrunk to what can be seen.
    let longest = picture.width().max(picture.height());
    let scaled = |length: usize| (length * 2 * SIDE / longest).max(1);
    let small;
    let picture = match longest > 2 * SIDE {
        true => {
            let size = (scaled(picture.width()), scaled(picture.height()));
            small = picture.resized(picture.window(), size);
            &small
        }
        false => picture,
    };
    format!(
        "<image x=\"{margin}\" y=\"6\" width=\"{SIDE}\" height=\"{SIDE}\" style=\"image-rendering:pixelated\" \
         href=\"data:image/png;base64,{png}\"/><text x=\"{middle}\" y=\"{line}\" fill=\"{color}\">{text}</text>",
        margin = (CELL - SIDE) / 2,
        png = BASE64_STANDARD.encode(picture.to_png()),
        middle = CELL / 2,
        line = SIDE + 18,
        text = escape(text)
    )
}
