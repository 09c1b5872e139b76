//! Content by its SHA-256: what it should be, and whether what is read is that.

use std::fmt;
use std::io::{self, ErrorKind, Read};

use sha2::{Digest as _, Sha256};

const PREFIX: &str = "sha256:";

/// A SHA-256; displays as OCI writes it, `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Digest([u8; 32]);

impl Digest {
    /// Of `bytes`.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Parses what [`Digest`] displays. `None` for anything else, other algorithms among it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::parse_hex(text.strip_prefix(PREFIX)?)
    }

    /// Parses the digits alone, in lower case.
    pub(super) fn parse_hex(digits: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        let is_ours = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != 64 || !digits.bytes().all(is_ours) {
            return None;
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// The digits alone.
    pub(super) fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.hex())
    }
}

/// A reader that takes the digest of what passes.
pub(super) struct Digesting<R> {
    input: R,
    state: Sha256,
    bytes: u64,
}

impl<R: Read> Digesting<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, state: Sha256::new(), bytes: 0 }
    }

    /// Reads to the end; the digest of everything and its length.
    pub(super) fn finish(mut self) -> io::Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((Digest(self.state.finalize().into()), self.bytes))
    }

    /// Reads to the end, and refuses anything but the content of that digest.
    pub(super) fn verify(self, expected: Digest) -> io::Result<()> {
        let (found, _) = self.finish()?;
        if found == expected {
            return Ok(());
        }
        Err(io::Error::new(ErrorKind::InvalidData, format!("its digest is {found}, not {expected}")))
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.state.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn digests_are_those_of_fips_180() {
        assert_eq!(Digest::of(b"abc").to_string(), ABC);
        assert_eq!(Digest::parse(ABC), Some(Digest::of(b"abc")));
        for wrong in ["", "sha256:", "sha512:00", &ABC[7..], &ABC.replace('b', "B"), &ABC.replace('b', "+")] {
            assert_eq!(Digest::parse(wrong), None);
        }
    }

    #[test]
    fn what_was_not_read_counts_too() {
        let mut reader = Digesting::new(b"abc".as_slice());
        assert_eq!(reader.read(&mut [0; 2]).expect("memory"), 2);
        assert!(reader.verify(Digest::of(b"abc")).is_ok());
        let error = Digesting::new(b"abd".as_slice()).verify(Digest::of(b"abc")).expect_err("another");
        assert!(error.to_string().contains(ABC));
    }
}
