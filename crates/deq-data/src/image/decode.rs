//! Files to rasters, without a panic whatever they hold.

use super::raster::{LabelMap, Picture};
use crate::error::DataError;
use image::{ImageDecoder, ImageFormat, ImageReader, Limits};
use std::io::Cursor;
use std::path::Path;

/// The largest width and height accepted, so that a damaged header cannot ask for all memory.
const LARGEST: u32 = 16_384;

impl Picture {
    /// Reads a JPEG or PNG file; which it is, its first bytes say. Grayscale, palettes, transparency, 16 bits, and the CMYK of JPEG become 8-bit RGB. A rotation
    /// in the metadata is not applied, as torchvision does not.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] if the file cannot be read, [`DataError::BadImage`] if it is not such an image, or damaged, or cut short.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let bytes = std::fs::read(path).map_err(|source| DataError::read(path, source))?;
        decode(&bytes).map_err(|reason| DataError::BadImage {
            path: path.to_owned(),
            reason,
        })
    }

    /// Writes a PNG file, whole or not at all.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] if it cannot be written.
    pub fn save_png(&self, path: &Path) -> Result<(), DataError> {
        let partial = path.with_extension("png.partial");
        std::fs::write(&partial, self.to_png())
            .and_then(|()| std::fs::rename(&partial, path))
            .map_err(|source| {
                // The file is incomplete, and the first error is the one to report.
                let _ = std::fs::remove_file(&partial);
                DataError::write(path, source)
            })
    }

    /// The picture as a PNG file in memory.
    pub fn to_png(&self) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let (width, height) = (self.width() as u32, self.height() as u32);
        image::write_buffer_with_format(
            &mut bytes,
            self.data(),
            width,
            height,
            image::ExtendedColorType::Rgb8,
            ImageFormat::Png,
        )
        .expect("memory can be written, and the bytes fit the size");
        bytes.into_inner()
    }
}

impl LabelMap {
    /// Reads a PNG of at most 8 bits, grayscale or palette, whose numbers (not colours) are ids; `map` says what becomes of each.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] if the file cannot be read, [`DataError::BadImage`] if it is no such PNG or damaged.
    pub fn open(path: &Path, map: &[u8; 256]) -> Result<Self, DataError> {
        let bytes = std::fs::read(path).map_err(|source| DataError::read(path, source))?;
        decode_labels(&bytes, map).map_err(|reason| DataError::BadImage {
            path: path.to_owned(),
            reason,
        })
    }
}

fn decode(bytes: &[u8]) -> Result<Picture, String> {
    let reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| error.to_string())?;
    let format = match reader.format() {
        Some(format @ (ImageFormat::Jpeg | ImageFormat::Png)) => format,
        _ => return Err("neither JPEG nor PNG".to_owned()),
    };
    if format == ImageFormat::Jpeg && !jpeg_is_whole(bytes) {
        return Err("cut short: it has no end marker".to_owned());
    }
    let text = |error: image::ImageError| error.to_string();
    let mut limits = Limits::default();
    limits.max_image_width = Some(LARGEST);
    limits.max_image_height = Some(LARGEST);
    let mut decoder = reader.into_decoder().map_err(text)?;
    decoder.set_limits(limits).map_err(text)?;
    let picture = image::DynamicImage::from_decoder(decoder).map_err(text)?;
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    if width == 0 || height == 0 {
        return Err("it has no pixel".to_owned());
    }
    Ok(Picture::new(width, height, picture.into_rgb8().into_raw()))
}

/// Whether the end marker comes after the last scan. Decoders fill the rest of a file that was cut short with gray and say nothing. Neither marker can occur
/// inside of a scan, where 0xff is followed by 0.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    last(0xd9) > last(0xda)
}

fn decode_labels(bytes: &[u8], map: &[u8; 256]) -> Result<LabelMap, String> {
    // The crate `image` would turn a palette into its colours.
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(|error| error.to_string())?;
    let info = reader.info();
    let (width, height) = (info.width, info.height);
    let numbers = matches!(
        info.color_type,
        png::ColorType::Grayscale | png::ColorType::Indexed
    );
    let bits = usize::from(info.bit_depth as u8);
    if !numbers || bits > 8 {
        return Err("a label map must be a grayscale or palette PNG of at most 8 bits".to_owned());
    }
    if width == 0 || height == 0 || width > LARGEST || height > LARGEST {
        return Err(format!(
            "{width} x {height} pixels: 1 to {LARGEST} are read"
        ));
    }
    let (width, height) = (width as usize, height as usize);
    // Programs that write small palettes pack several pixels into a byte; every row begins with a new one.
    let row = (width * bits).div_ceil(8);
    let mut packed = vec![0; row * height];
    reader
        .next_frame(&mut packed)
        .map_err(|error| error.to_string())?;
    let mask = u8::MAX >> (8 - bits);
    let id = |line: &[u8], x: usize| {
        let end = (x + 1) * bits;
        (line[(end - 1) / 8] >> (end.div_ceil(8) * 8 - end)) & mask
    };
    let ids = packed
        .chunks_exact(row)
        .flat_map(|line| (0..width).map(move |x| id(line, x)));
    let data = ids.map(|id| map[usize::from(id)]).collect();
    Ok(LabelMap::new(width, height, data))
}
