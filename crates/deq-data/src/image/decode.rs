//! Files to rasters, without a panic whatever they hold.

use super::jpeg::{self, End};
use super::raster::{LabelMap, Picture};
use crate::error::DataError;
use crate::files::write_whole;
use crate::panics::catch_panic;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};
use std::io::{Cursor, Read};
use std::path::Path;

/// The largest width and height accepted.
const LARGEST: u32 = 16_384;
/// The most pixels accepted, 8192 x 8192, since a header of a few bytes can ask for all memory.
const MOST_PIXELS: u64 = 1 << 26;
/// The memory that a decoder may take: the most pixels at 8 bytes each, 16-bit RGBA.
const MOST_MEMORY: u64 = 8 * MOST_PIXELS;
/// The largest file accepted: the most pixels at 8 bytes each, not compressed, and metadata.
const LARGEST_FILE: u64 = MOST_MEMORY + (64 << 20);
/// The first bytes of a file, which say its format and size.
const HEADER: u64 = 64 << 10;
/// The formats that are read.
const FORMATS: [ImageFormat; 7] = [
    ImageFormat::Jpeg,
    ImageFormat::Png,
    ImageFormat::WebP,
    ImageFormat::Bmp,
    ImageFormat::Tiff,
    ImageFormat::Gif,
    ImageFormat::Pnm,
];
/// Their names, for messages.
pub(super) const FORMAT_NAMES: &str = "JPEG, PNG, WebP, BMP, TIFF, GIF or PNM";

/// An image as it was read.
pub(super) struct Decoded {
    pub(super) picture: Picture,
    /// Whether the end marker is missing, but no pixel.
    pub(super) cut_short: bool,
}

impl Picture {
    /// Reads a JPEG, PNG, WebP, BMP, TIFF, GIF or PNM file; which it is, its first bytes say.
    /// Grayscale, palettes, transparency, 16 bits, and the CMYK of JPEG become 8-bit RGB; of an
    /// animation the first frame is read. A rotation in the metadata is not applied, as torchvision
    /// does not. Bytes that follow the end of a JPEG do not matter, and one that lacks nothing but
    /// its end marker is read.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] if the file cannot be read, [`DataError::BadImage`] if it is not such an
    /// image, damaged or cut short, or has a side of more than 16,384 pixels or more than 2^26
    /// pixels.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        Ok(open(path)?.picture)
    }

    /// Writes a PNG file, whole or not at all.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] if it cannot be written.
    pub fn save_png(&self, path: &Path) -> Result<(), DataError> {
        write_whole(path, |file| file.write_all(&self.to_png()))
    }

    /// The image as a PNG file in memory.
    pub fn to_png(&self) -> Vec<u8> {
        // By the format's own crate: the encoder of `image` would be compiled here for every
        // format.
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width() as u32, self.height() as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder
            .write_header()
            .and_then(|mut writer| writer.write_image_data(self.data()))
            .expect("memory can be written, and the bytes fit the size");
        bytes
    }
}

impl LabelMap {
    /// Reads a PNG of at most 8 bits, grayscale or palette, whose numbers (not colours) are ids;
    /// `map` says what becomes of each.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] if the file cannot be read, [`DataError::BadImage`] if it is no such PNG,
    /// damaged, or larger than [`Picture::open`] accepts.
    pub fn open(path: &Path, map: &[u8; 256]) -> Result<Self, DataError> {
        read_with(path, |bytes| decode_labels(bytes, map))
    }
}

/// Checks the format and the size of an image by its first bytes. Where they do not say enough, it
/// is read in full.
pub(super) fn check_header(path: &Path) -> Result<(), DataError> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(HEADER).read_to_end(&mut bytes))
        .map_err(|source| DataError::read(path, source))?;
    let size = || {
        let format = known_format(&bytes)?;
        let reader = ImageReader::with_format(Cursor::new(bytes.as_slice()), format);
        let (width, height) = reader.into_dimensions().map_err(message)?;
        require_size(width, height)
    };
    match catch_panic(size) {
        Ok(Ok(())) => Ok(()),
        _ => open(path).map(drop),
    }
}

/// As [`Picture::open`], and says whether the end marker was missing.
pub(super) fn open(path: &Path) -> Result<Decoded, DataError> {
    read_with(path, decode)
}

/// Decodes a file; a panic of a decoder becomes an error too.
fn read_with<T>(path: &Path, decode: impl Fn(&[u8]) -> Result<T, String>) -> Result<T, DataError> {
    let bytes = read_bounded(path, LARGEST_FILE)?;
    let decoded = catch_panic(|| decode(&bytes))
        .unwrap_or_else(|_| Err("the decoder failed on it, so it is damaged".to_owned()));
    decoded.map_err(|reason| DataError::BadImage {
        path: path.to_owned(),
        reason: printable(&reason),
    })
}

/// Reads a file of at most `most` bytes.
pub(super) fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, DataError> {
    let read = |source| DataError::read(path, source);
    let file = std::fs::File::open(path).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    let mut bytes = Vec::new();
    // The size of what is no plain file, such as a pipe, is 0.
    if size <= most {
        bytes.reserve_exact(size as usize);
        file.take(most + 1).read_to_end(&mut bytes).map_err(read)?;
    }
    if size > most || bytes.len() as u64 > most {
        return Err(DataError::BadImage {
            path: path.to_owned(),
            reason: format!("it is larger than the {most} bytes that are read"),
        });
    }
    Ok(bytes)
}

/// A message of a decoder without control characters, which may come from the file, and not too
/// long.
fn printable(text: &str) -> String {
    const LONGEST: usize = 200;
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST)
        .collect();
    clean.trim_end().to_owned()
}

fn require_size(width: u32, height: u32) -> Result<(), String> {
    let sides = 1..=LARGEST;
    let pixels = u64::from(width) * u64::from(height);
    if sides.contains(&width) && sides.contains(&height) && pixels <= MOST_PIXELS {
        return Ok(());
    }
    Err(format!(
        "{width} x {height} pixels: sides from 1 to {LARGEST} and at most {MOST_PIXELS} pixels \
         are read"
    ))
}

fn known_format(bytes: &[u8]) -> Result<ImageFormat, String> {
    match image::guess_format(bytes) {
        Ok(format) if FORMATS.contains(&format) => Ok(format),
        Ok(other) => Err(format!("it is {other:?}, not {FORMAT_NAMES}")),
        Err(_) => Err(format!("it is not {FORMAT_NAMES}")),
    }
}

fn decode(bytes: &[u8]) -> Result<Decoded, String> {
    let format = known_format(bytes)?;
    let whole = |picture| Decoded {
        picture,
        cut_short: false,
    };
    if format != ImageFormat::Jpeg {
        return decode_as(bytes, format).map(whole);
    }
    match jpeg::end(bytes) {
        End::Marker(end) => decode_as(&bytes[..end], format).map(whole),
        End::InScan => {
            let completed = |filler| decode_as(&jpeg::completed(bytes, filler), format);
            let picture = completed(0)?;
            match picture == completed(0x55)? {
                true => Ok(Decoded {
                    picture,
                    cut_short: true,
                }),
                false => Err("cut short: the end of its pixels is missing".to_owned()),
            }
        }
        End::InHeader => Err("cut short: it ends before its pixels begin".to_owned()),
    }
}

fn decode_as(bytes: &[u8], format: ImageFormat) -> Result<Picture, String> {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MOST_MEMORY);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(message)?;
    let (width, height) = decoder.dimensions();
    require_size(width, height)?;
    if decoder.total_bytes() > MOST_MEMORY {
        return Err(format!(
            "its pixels take {} bytes, but at most {MOST_MEMORY} are read",
            decoder.total_bytes()
        ));
    }
    let picture = DynamicImage::from_decoder(decoder).map_err(message)?;
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Ok(Picture::new(width, height, picture.into_rgb8().into_raw()))
}

fn message(error: ImageError) -> String {
    match error {
        ImageError::Limits(_) => {
            format!("it needs more than the {MOST_MEMORY} bytes of memory that it may take")
        }
        other => other.to_string(),
    }
}

fn decode_labels(bytes: &[u8], map: &[u8; 256]) -> Result<LabelMap, String> {
    // The crate `image` would turn a palette into its colours.
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::IDENTITY);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
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
    require_size(width, height)?;
    let (width, height) = (width as usize, height as usize);
    // Small palettes are packed, several pixels into a byte; every row begins with a new one.
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
