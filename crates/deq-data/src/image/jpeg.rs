//! Where a JPEG ends, which decoders do not say: they fill what is missing with gray.

const START_OF_SCAN: u8 = 0xda;
const END_OF_IMAGE: u8 = 0xd9;
/// Bytes appended in place of a missing end: more than any decoder reads ahead.
const PADDING: usize = 64;

/// How a JPEG ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With the end marker; the position after it. What follows is not part of the image.
    Marker(usize),
    /// After the start of a scan, without the end marker.
    InScan,
    /// Before the first scan, or inside a segment.
    InHeader,
}

/// Walks the segments of a JPEG up to its end marker. Thumbnails inside a segment are jumped over.
pub(super) fn end(bytes: &[u8]) -> End {
    let mut scanning = false;
    let mut at = 2;
    while let Some((marker, after)) = next_marker(bytes, at) {
        match marker {
            END_OF_IMAGE => return End::Marker(after),
            // The start of an image, restarts within a scan, and a reserved marker stand alone.
            0xd8 | 0xd0..=0xd7 | 0x01 => at = after,
            _ => {
                let Some(&[high, low]) = bytes.get(after..after + 2) else {
                    return End::InHeader;
                };
                // The length counts its own two bytes.
                at = after + usize::from(u16::from_be_bytes([high, low])).max(2);
                if at > bytes.len() {
                    return End::InHeader;
                }
                scanning |= marker == START_OF_SCAN;
            }
        }
    }
    match scanning {
        true => End::InScan,
        false => End::InHeader,
    }
}

/// The next marker from `at` on and the position after it. Within a scan 0xff followed by 0 is a
/// byte of data, and a marker may be preceded by any number of 0xff.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == 0xff)?;
        at += bytes[at..].iter().position(|byte| *byte != 0xff)?;
        at += 1;
        if bytes[at - 1] != 0 {
            return Some((bytes[at - 1], at));
        }
    }
}

/// A JPEG without its end marker, completed by the byte `filler` and the end marker. Bits that the
/// scan lacks are read from the filler, so that an image which is all there does not depend on it.
pub(super) fn completed(bytes: &[u8], filler: u8) -> Vec<u8> {
    // A download that failed may have left zeros; at most one can belong to the scan.
    let zeros = bytes.iter().rev().take_while(|byte| **byte == 0).count();
    let mut whole = bytes[..bytes.len() - zeros.saturating_sub(1)].to_vec();
    // The first half of the end marker.
    if whole.last() == Some(&0xff) {
        whole.pop();
    }
    whole.extend([filler; PADDING]);
    whole.extend([0xff, END_OF_IMAGE]);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_jumped_over_and_data_is_not_taken_for_markers() {
        let head = [0xff, 0xd8];
        // A segment that holds an end marker, as a thumbnail does.
        let segment = [0xff, 0xe1, 0, 6, 0xff, 0xda, 0xff, 0xd9];
        let scan = [0xff, 0xda, 0, 3, 7, 1, 0xff, 0, 0xff, 0xd3, 2];
        let whole = [&head[..], &segment, &scan, &[0xff, 0xff, 0xd9]].concat();
        assert_eq!(end(&whole), End::Marker(whole.len()));
        let trailed = [&whole[..], &[0xff, 0xda, 9, 9, 0xff, 0xd9, 1]].concat();
        assert_eq!(end(&trailed), End::Marker(whole.len()));
        let first_byte_of_data = head.len() + segment.len() + 5;
        for len in 0..whole.len() {
            let expected = match len >= first_byte_of_data {
                true => End::InScan,
                false => End::InHeader,
            };
            assert_eq!(end(&whole[..len]), expected, "{len}");
        }
    }

    #[test]
    fn completion_drops_zeros_and_half_a_marker() {
        let tail = |bytes: &[u8]| {
            let whole = completed(bytes, 7);
            assert_eq!(whole[whole.len() - 2..], [0xff, 0xd9]);
            whole[..whole.len() - 2 - PADDING].to_vec()
        };
        assert_eq!(tail(&[1, 2, 0, 0, 0]), [1, 2, 0]);
        assert_eq!(tail(&[1, 0xff, 0]), [1, 0xff, 0]);
        assert_eq!(tail(&[1, 0xff]), [1]);
    }
}
