//! Images and label maps: 8-bit rasters with one code for cutting, flipping and resizing.

use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

/// An 8-bit raster of `C` channels, interleaved, row by row from the top.
#[derive(Clone, PartialEq, Eq)]
pub struct Raster<const C: usize> {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

/// An RGB image.
pub type Picture = Raster<3>;

/// A class id per pixel, or [`IGNORE_LABEL`].
pub type LabelMap = Raster<1>;

/// The label of pixels that take part in neither loss nor measure, in the place of whatever id a
/// data set uses for them.
pub const IGNORE_LABEL: u8 = 255;

/// A rectangle of pixels inside a raster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first column.
    pub left: usize,
    /// The first row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl<const C: usize> std::fmt::Debug for Raster<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Raster<{C}>({} x {})", self.width, self.height)
    }
}

impl<const C: usize> Raster<C> {
    /// A raster of `data`, `[height, width, C]`.
    ///
    /// # Panics
    ///
    /// If `data` has another length, or width or height is 0.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Self {
        assert!(width > 0 && height > 0, "a raster has at least one pixel");
        assert_eq!(data.len(), width * height * C, "width x height x channels");
        Self {
            width,
            height,
            data,
        }
    }

    /// A raster of one colour or label.
    ///
    /// # Panics
    ///
    /// If width or height is 0.
    pub fn filled(width: usize, height: usize, value: [u8; C]) -> Self {
        Self::new(width, height, value.repeat(width * height))
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The bytes, `[height, width, C]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The pixel in column `x` and row `y`.
    ///
    /// # Panics
    ///
    /// If it lies outside.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; C] {
        assert!(x < self.width && y < self.height, "outside of the raster");
        let start = (y * self.width + x) * C;
        std::array::from_fn(|channel| self.data[start + channel])
    }

    /// Sets the pixel in column `x` and row `y`.
    ///
    /// # Panics
    ///
    /// If it lies outside.
    pub fn set_pixel(&mut self, x: usize, y: usize, value: [u8; C]) {
        assert!(x < self.width && y < self.height, "outside of the raster");
        let start = (y * self.width + x) * C;
        self.data[start..start + C].copy_from_slice(&value);
    }

    /// The whole raster as a window.
    pub fn window(&self) -> Window {
        Window {
            left: 0,
            top: 0,
            width: self.width,
            height: self.height,
        }
    }

    /// Left and right exchanged.
    pub fn flipped(&self) -> Self {
        let mut data = Vec::with_capacity(self.data.len());
        for row in self.data.chunks_exact(self.width * C) {
            for pixel in row.chunks_exact(C).rev() {
                data.extend_from_slice(pixel);
            }
        }
        Self { data, ..*self }
    }

    /// The rectangle of `width` x `height` whose upper left corner is at column `left` and row
    /// `top`, either of which may lie outside; pixels outside are `fill`.
    ///
    /// # Panics
    ///
    /// If `width` or `height` is 0.
    pub fn cropped(
        &self,
        (left, top): (isize, isize),
        (width, height): (usize, usize),
        fill: [u8; C],
    ) -> Self {
        let mut cut = Self::filled(width, height, fill);
        // The columns that both share, counted in the result.
        let first = left.saturating_neg().clamp(0, width as isize);
        let end = (self.width as isize).saturating_sub(left);
        let end = end.clamp(first, width as isize);
        for row in 0..height as isize {
            let source = row.saturating_add(top);
            if first == end || !(0..self.height as isize).contains(&source) {
                continue;
            }
            let from = (source as usize * self.width + (first + left) as usize) * C;
            let to = (row as usize * width + first as usize) * C;
            let bytes = (end - first) as usize * C;
            cut.data[to..to + bytes].copy_from_slice(&self.data[from..from + bytes]);
        }
        cut
    }

    /// A window resized to `width` x `height`; nothing outside of the window has an influence, as
    /// if it were cut out first.
    fn resized_by(&self, window: Window, (width, height): (usize, usize), alg: ResizeAlg) -> Self {
        if (window.width, window.height) == (width, height) {
            let corner = (window.left as isize, window.top as isize);
            return self.cropped(corner, (width, height), [0; C]);
        }
        let pixels = match C {
            1 => PixelType::U8,
            _ => PixelType::U8x3,
        };
        let size = |value: usize| u32::try_from(value).expect("fewer than 2^32 pixels in a row");
        let source = ImageRef::new(size(self.width), size(self.height), &self.data, pixels)
            .expect("a raster has the bytes that its size asks for");
        let source = CroppedImage::new(
            &source,
            size(window.left),
            size(window.top),
            size(window.width),
            size(window.height),
        )
        .expect("the window lies inside");
        let mut result = Image::new(size(width), size(height), pixels);
        Resizer::new()
            .resize(&source, &mut result, &ResizeOptions::new().resize_alg(alg))
            .expect("source and result have one pixel type");
        Self::new(width, height, result.into_vec())
    }
}

impl Picture {
    /// A window resized by the antialiased bilinear filter, which is what Pillow and torchvision
    /// use on images.
    ///
    /// # Panics
    ///
    /// If the window does not lie inside, or `size`, width and height, has a 0.
    pub fn resized(&self, window: Window, size: (usize, usize)) -> Self {
        self.resized_by(window, size, ResizeAlg::Convolution(FilterType::Bilinear))
    }
}

impl LabelMap {
    /// A window resized by taking the nearest label, so that none appears that was not there.
    ///
    /// # Panics
    ///
    /// If the window does not lie inside, or `size`, width and height, has a 0.
    pub fn resized(&self, window: Window, size: (usize, usize)) -> Self {
        self.resized_by(window, size, ResizeAlg::Nearest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered() -> LabelMap {
        LabelMap::new(3, 2, vec![0, 1, 2, 3, 4, 5])
    }

    #[test]
    fn a_crop_outside_is_filled() {
        let cut = |corner, size| numbered().cropped(corner, size, [9]).data().to_vec();
        assert_eq!(cut((1, 1), (2, 1)), [4, 5]);
        assert_eq!(cut((-1, -1), (3, 2)), [9, 9, 9, 9, 0, 1]);
        assert_eq!(cut((2, 0), (3, 3)), [2, 9, 9, 5, 9, 9, 9, 9, 9]);
        assert_eq!(cut((7, 0), (2, 1)), [9, 9]);
        assert_eq!(cut((-7, -7), (2, 1)), [9, 9]);
        assert_eq!(cut((isize::MIN, isize::MAX), (2, 1)), [9, 9]);
    }

    #[test]
    fn flipping_twice_changes_nothing() {
        assert_eq!(numbered().flipped().data(), [2, 1, 0, 5, 4, 3]);
        assert_eq!(numbered().flipped().flipped(), numbered());
    }

    #[test]
    fn nothing_outside_of_the_window_has_an_influence() {
        let mut picture = Picture::filled(20, 10, [200, 0, 0]);
        for y in 2..8 {
            for x in 4..12 {
                picture.set_pixel(x, y, [10, 20, 30]);
            }
        }
        let window = Window {
            left: 4,
            top: 2,
            width: 8,
            height: 6,
        };
        for size in [(3, 2), (31, 17), (8, 6)] {
            let resized = picture.resized(window, size);
            assert_eq!((resized.width(), resized.height()), size);
            assert!(resized.data().chunks(3).all(|pixel| pixel == [10, 20, 30]));
        }
    }

    #[test]
    fn shrinking_averages() {
        // A fine checkerboard: without antialiasing it would turn black, white, or another
        // checkerboard.
        let data = (0..64 * 64)
            .flat_map(|i| [if (i / 64 + i) % 2 == 0 { 0 } else { 255 }; 3])
            .collect();
        let board = Picture::new(64, 64, data);
        let small = board.resized(board.window(), (16, 16));
        assert!(small.data().iter().all(|value| (120..=135).contains(value)));
    }
}
