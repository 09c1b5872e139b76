//! Compressed streams, told by their first bytes: gzip and Zstandard are undone, others named.
//!
//! A stream ends where its last member or frame does; each of them has its checksum verified.
//! What a Zstandard frame looks back to is at most 128 MiB, the decoder's own limit.

use std::error::Error;
use std::io::{self, BufRead, ErrorKind, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
    /// Not to be undone here, but by this program.
    Foreign(&'static str),
}

impl Compression {
    /// By the first bytes of a stream; six are enough.
    pub(super) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or one to skip, which begins with one of sixteen numbers (RFC 8878 section 3.1).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Foreign("unxz"),
            [b'B', b'Z', b'h', ..] => Self::Foreign("bunzip2"),
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Foreign("unlz4"),
            _ => Self::None,
        }
    }
}

/// What `input` holds, uncompressed.
pub(super) fn decompressed<'a>(mut input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    match Compression::of(input.fill_buf()?) {
        Compression::None => Ok(Box::new(input)),
        Compression::Gzip => Ok(Box::new(MultiGzDecoder::new(input))),
        Compression::Zstd => Ok(Box::new(Frames { input, decoder: FrameDecoder::new(), within: false })),
        Compression::Foreign(program) => {
            let what = format!("its compression is not one that rnet undoes; `{program}` does");
            Err(io::Error::new(ErrorKind::Unsupported, what))
        }
    }
}

/// Zstandard frames, one after the other.
struct Frames<R> {
    input: R,
    decoder: FrameDecoder,
    /// Whether the decoder is within a frame.
    within: bool,
}

impl<R: BufRead> Frames<R> {
    /// Begins the next frame that has something in it; false if there is none.
    fn advance(&mut self) -> io::Result<bool> {
        while !self.input.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.input) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    io::copy(&mut self.input.by_ref().take(length.into()), &mut io::sink())?;
                }
                Err(cause) => return Err(damaged(cause)),
            }
        }
        Ok(false)
    }

    /// Ends the frame, which may tell its sum.
    fn finish(&mut self) -> io::Result<()> {
        let said = self.decoder.get_checksum_from_data();
        if said.is_some() && said != self.decoder.get_calculated_checksum() {
            return Err(damaged("a frame's checksum is wrong"));
        }
        self.within = false;
        Ok(())
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.within {
                self.within = self.advance()?;
                if !self.within {
                    return Ok(0);
                }
            }
            if self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.input, one).map_err(damaged)?;
            }
            let read = self.decoder.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            if self.decoder.is_finished() {
                self.finish()?;
            }
        }
    }
}

fn damaged(cause: impl Into<Box<dyn Error + Send + Sync>>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, cause)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn plain(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        decompressed(bytes)?.read_to_end(&mut text)?;
        Ok(text)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).and_then(|()| encoder.finish()).expect("written to memory")
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        compress_to_vec(text, CompressionLevel::Fastest)
    }

    #[test]
    fn members_and_frames_follow_each_other() {
        let text = b"one and the same ".repeat(20_000);
        let twice = [text.clone(), text.clone()].concat();
        assert_eq!(plain(&text).expect("plain"), text);
        assert_eq!(plain(&[gzip(&text), gzip(&text)].concat()).expect("gzip"), twice);
        let skipped = [0x5e, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let frames = [zstd(&text), skipped.to_vec(), zstd(&text), skipped.to_vec()].concat();
        assert_eq!(plain(&frames).expect("zstd"), twice);
        assert_eq!(plain(&[skipped.to_vec(), zstd(&text)].concat()).expect("zstd"), text);
    }

    #[test]
    fn damage_and_foreign_formats_are_errors() {
        let (mut gz, zst) = (gzip(b"some text"), zstd(&b"some text".repeat(1000)));
        for bytes in [&gz[..gz.len() - 2], &zst[..zst.len() / 2], &zst[..5]] {
            assert!(plain(bytes).is_err(), "{bytes:?}");
        }
        let end = gz.len();
        gz[end - 6] ^= 1;
        assert!(plain(&gz).is_err());
        assert!(plain(b"\xfd7zXZ\0").expect_err("foreign").to_string().contains("unxz"));
    }
}
