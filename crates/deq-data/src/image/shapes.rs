//! Generated images of shapes, so that nothing needs to be fetched.

use super::dataset::{COUNTED_MAPS, Example, ImageDataset, Target, VisionTask, weights_by_share};
use super::fingerprint::Fingerprint;
use super::random::{Stream, generator, uniform};
use super::raster::{LabelMap, Picture};
use crate::error::DataError;
use rand::RngExt;
use rand::rngs::ChaCha8Rng;

/// The shapes there are, in the order of their ids.
const KINDS: [&str; 8] = [
    "circle", "square", "triangle", "cross", "ring", "star", "crescent", "bars",
];

/// Images of shapes in random colour, size, place and orientation before a gradient with noise.
///
/// For classification, one shape each, the classes in equal numbers. For segmentation, one to four
/// shapes that may hide one another, with class 0 for the background. An image depends on seed and
/// index alone.
///
/// ```
/// use deq_data::{ImageDataset, Shapes, VisionTask};
///
/// let shapes = Shapes::new(VisionTask::Classification, 32, 1000, 7)?;
/// let example = shapes.example(3)?;
/// assert_eq!((example.picture.width(), example.picture.height()), (32, 32));
/// assert_eq!(shapes.classes()[3], "cross");
/// # Ok::<(), deq_data::DataError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Shapes {
    task: VisionTask,
    size: usize,
    count: usize,
    seed: u64,
    classes: Vec<String>,
}

impl Shapes {
    /// `count` images of `size` x `size` pixels. Another seed gives other images: use two for
    /// training and test.
    ///
    /// # Errors
    ///
    /// [`DataError::OutOfRange`] if `size` is below 16, where the shapes cannot be told apart, or
    /// above 1024, or `count` is 0.
    pub fn new(task: VisionTask, size: usize, count: usize, seed: u64) -> Result<Self, DataError> {
        for (valid, field, value, requirement) in [
            ((16..=1024).contains(&size), "size", size, "from 16 to 1024"),
            (
                (1..u32::MAX as usize).contains(&count),
                "count",
                count,
                "at least 1 and below 2^32",
            ),
        ] {
            if !valid {
                return Err(DataError::OutOfRange {
                    field,
                    value: value as f64,
                    requirement,
                });
            }
        }
        let background = match task {
            VisionTask::Classification => None,
            VisionTask::Segmentation => Some("background"),
        };
        let classes = background.into_iter().chain(KINDS);
        Ok(Self {
            task,
            size,
            count,
            seed,
            classes: classes.map(str::to_owned).collect(),
        })
    }
}

impl ImageDataset for Shapes {
    fn len(&self) -> usize {
        self.count
    }

    fn example(&self, index: usize) -> Result<Example, DataError> {
        assert!(index < self.count, "index {index} of {}", self.count);
        let mut rng = generator(self.seed, Stream::Shape, 0, index as u64);
        let side = self.size as f64;
        let colors = gradient_colors(&mut rng);
        let mut canvas = Canvas::gradient(self.size, colors, &mut rng);
        let target = match self.task {
            VisionTask::Classification => {
                let kind = index % KINDS.len();
                let shape = Shape::random(kind, side, (0.36, 0.48), &mut rng);
                canvas.draw(&shape, contrasting(&colors, &mut rng));
                Target::Class(kind as u16)
            }
            VisionTask::Segmentation => {
                let mut map = LabelMap::filled(self.size, self.size, [0]);
                for _ in 0..rng.random_range(1..=4) {
                    let kind = rng.random_range(0..KINDS.len());
                    let shape = Shape::random(kind, side, (0.15, 0.32), &mut rng);
                    canvas.draw(&shape, contrasting(&colors, &mut rng));
                    label(&mut map, &shape);
                }
                Target::Map(map)
            }
        };
        Ok(Example::new(canvas.with_noise(&mut rng), target))
    }

    /// Of a segmentation as for [`SegmentationFolder`](crate::SegmentationFolder), by the first 100
    /// maps: three quarters of the pixels are background.
    fn class_weights(&self) -> Vec<f32> {
        if self.task == VisionTask::Classification {
            return Vec::new();
        }
        let some = (0..self.len().min(COUNTED_MAPS)).filter_map(|index| self.example(index).ok());
        let maps = some.filter_map(|example| match example.target {
            Target::Map(map) => Some(map),
            Target::Class(_) => None,
        });
        weights_by_share(self.classes.len(), maps)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn task(&self) -> VisionTask {
        self.task
    }

    /// Of what the images are made from, since there are no files.
    fn fingerprint(&self) -> Result<u64, DataError> {
        let mut fingerprint = Fingerprint::new("shapes");
        fingerprint.names(&self.classes);
        for number in [self.size as u64, self.count as u64, self.seed] {
            fingerprint.number(number);
        }
        Ok(fingerprint.finish())
    }
}

type Color = [f64; 3];

fn random_color(rng: &mut ChaCha8Rng) -> Color {
    std::array::from_fn(|_| uniform(rng, 0.0, 255.0))
}

/// The two ends of a gradient, at most 80 of 255 levels apart in every channel, so that some colour
/// stands out from all of it.
fn gradient_colors(rng: &mut ChaCha8Rng) -> [Color; 2] {
    let from = random_color(rng);
    let to = from.map(|value| uniform(rng, value - 80.0, value + 80.0).clamp(0.0, 255.0));
    [from, to]
}

/// A colour that is at least 60 levels away from all of a gradient, in some channel.
fn contrasting([from, to]: &[Color; 2], rng: &mut ChaCha8Rng) -> Color {
    const CONTRAST: f64 = 60.0;
    loop {
        let color = random_color(rng);
        let stands_out = (0..3).any(|c| {
            let (low, high) = (from[c].min(to[c]), from[c].max(to[c]));
            color[c] <= low - CONTRAST || color[c] >= high + CONTRAST
        });
        if stands_out {
            return color;
        }
    }
}

/// A shape in its place.
struct Shape {
    kind: usize,
    center: (f64, f64),
    radius: f64,
    sin: f64,
    cos: f64,
}

impl Shape {
    /// A shape that lies inside the image, with a radius of `radius` times its side.
    fn random(kind: usize, side: f64, radius: (f64, f64), rng: &mut ChaCha8Rng) -> Self {
        let radius = side * uniform(rng, radius.0, radius.1);
        let place = |rng: &mut ChaCha8Rng| uniform(rng, radius, side - radius);
        let center = (place(rng), place(rng));
        let (sin, cos) = uniform(rng, -0.25, 0.25).sin_cos();
        Self {
            kind,
            center,
            radius,
            sin,
            cos,
        }
    }

    /// The share of pixel `(x, y)` that is covered, by 16 points.
    fn coverage(&self, x: usize, y: usize) -> f64 {
        let points = (0..16).filter(|point| {
            let dx = x as f64 + f64::from(point % 4) / 4.0 + 0.125 - self.center.0;
            let dy = y as f64 + f64::from(point / 4) / 4.0 + 0.125 - self.center.1;
            let u = (self.cos * dx + self.sin * dy) / self.radius;
            let v = (self.cos * dy - self.sin * dx) / self.radius;
            covers(self.kind, u, v)
        });
        points.count() as f64 / 16.0
    }

    /// The pixels that it may touch.
    fn pixels(&self, size: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let range = |center: f64, radius: f64| {
            let first = (center - radius).floor().max(0.0) as usize;
            let end = ((center + radius).ceil().max(0.0) as usize).min(size);
            first..end
        };
        let columns = range(self.center.0, self.radius);
        range(self.center.1, self.radius).flat_map(move |y| columns.clone().map(move |x| (x, y)))
    }
}

/// Whether a shape covers a point, in coordinates where it fills the unit disc; `v` points down.
fn covers(kind: usize, u: f64, v: f64) -> bool {
    let rho = u.hypot(v);
    if rho > 1.0 {
        return false;
    }
    match KINDS[kind] {
        "circle" => rho <= 0.85,
        "square" => u.abs().max(v.abs()) <= 0.7,
        // Equilateral, its corners on the unit circle.
        "triangle" => v <= 0.5 && 3.0_f64.sqrt() * u.abs() - v <= 1.0,
        "cross" => u.abs().min(v.abs()) <= 0.25 && u.abs().max(v.abs()) <= 0.9,
        "ring" => rho >= 0.6,
        "star" => {
            // Between an outer corner and its two inner neighbours the edge is straight.
            let sector = std::f64::consts::TAU / 5.0;
            let angle = (u.atan2(-v)).rem_euclid(sector);
            let angle = angle.min(sector - angle);
            let (outer, inner) = (
                (1.0, 0.0),
                (0.4 * (sector / 2.0).cos(), 0.4 * (sector / 2.0).sin()),
            );
            let point = (rho * angle.cos(), rho * angle.sin());
            let edge = (inner.0 - outer.0, inner.1 - outer.1);
            edge.0 * (point.1 - outer.1) - edge.1 * (point.0 - outer.0) >= 0.0
        }
        "crescent" => (u - 0.45).hypot(v) >= 0.75,
        _ => (0.25..=0.65).contains(&u.abs()) && v.abs() <= 0.75,
    }
}

fn label(map: &mut LabelMap, shape: &Shape) {
    for (x, y) in shape.pixels(map.width()) {
        if shape.coverage(x, y) >= 0.5 {
            // Class 0 is the background.
            map.set_pixel(x, y, [shape.kind as u8 + 1]);
        }
    }
}

/// An image in the making.
struct Canvas {
    size: usize,
    /// `[size, size, 3]`, from 0 to 255.
    colors: Vec<Color>,
}

impl Canvas {
    fn gradient(size: usize, [from, to]: [Color; 2], rng: &mut ChaCha8Rng) -> Self {
        let (sin, cos) = uniform(rng, 0.0, std::f64::consts::TAU).sin_cos();
        let colors = (0..size * size).map(|i| {
            let (x, y) = ((i % size) as f64, (i / size) as f64);
            let (x, y) = (x / size as f64 - 0.5, y / size as f64 - 0.5);
            let share = (0.5 + (x * cos + y * sin)).clamp(0.0, 1.0);
            std::array::from_fn(|c| from[c] + share * (to[c] - from[c]))
        });
        Self {
            size,
            colors: colors.collect(),
        }
    }

    fn draw(&mut self, shape: &Shape, color: Color) {
        for (x, y) in shape.pixels(self.size) {
            let share = shape.coverage(x, y);
            let pixel = &mut self.colors[y * self.size + x];
            *pixel = std::array::from_fn(|c| pixel[c] + share * (color[c] - pixel[c]));
        }
    }

    /// The image with noise of up to 20 of 255 levels.
    fn with_noise(self, rng: &mut ChaCha8Rng) -> Picture {
        let bytes = self.colors.iter().flatten().map(|value| {
            let noise = uniform(rng, -20.0, 20.0);
            (value + noise).round().clamp(0.0, 255.0) as u8
        });
        let bytes = bytes.collect();
        Picture::new(self.size, self.size, bytes)
    }
}
