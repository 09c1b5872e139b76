//! A writer of archives for tests, which objects to nothing.

const BLOCK: usize = 512;

/// An archive under construction.
#[derive(Default)]
pub(super) struct Tar(Vec<u8>);

impl Tar {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// A header alone; `change` sees it before its checksum is made.
    pub(super) fn header(mut self, name: &str, kind: u8, change: impl FnOnce(&mut [u8])) -> Self {
        let mut header = [0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        let mode: &[u8] = if kind == b'5' { b"0000755" } else { b"0000644" };
        header[100..107].copy_from_slice(mode);
        header[124..135].copy_from_slice(b"00000000000");
        header[136..147].copy_from_slice(b"00000001750");
        header[148..156].fill(b' ');
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar  \0");
        change(&mut header);
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend(header);
        self
    }

    /// Content in whole blocks.
    pub(super) fn bytes(mut self, content: &[u8]) -> Self {
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// An entry of some kind with content.
    pub(super) fn raw(self, kind: u8, content: &[u8]) -> Self {
        self.sized("extension", kind, 0o644, content)
    }

    pub(super) fn file(self, name: &str, content: &[u8]) -> Self {
        self.sized(name, b'0', 0o644, content)
    }

    pub(super) fn file_of_mode(self, name: &str, mode: u32, content: &[u8]) -> Self {
        self.sized(name, b'0', mode, content)
    }

    pub(super) fn directory(self, name: &str, mode: u32) -> Self {
        self.sized(name, b'5', mode, b"")
    }

    /// A symbolic link (`2`) or a hard one (`1`).
    pub(super) fn link(self, kind: u8, name: &str, target: &str) -> Self {
        let put = |header: &mut [u8]| header[157..157 + target.len()].copy_from_slice(target.as_bytes());
        self.header(name, kind, put)
    }

    /// With the end marker.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    fn sized(self, name: &str, kind: u8, mode: u32, content: &[u8]) -> Self {
        let (mode, size) = (format!("{mode:07o}"), format!("{:011o}", content.len()));
        let put = |header: &mut [u8]| {
            header[100..107].copy_from_slice(mode.as_bytes());
            header[124..135].copy_from_slice(size.as_bytes());
        };
        self.header(name, kind, put).bytes(content)
    }
}

/// Records of an extended header.
pub(super) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (1..).find(|digits| (rest + digits).to_string().len() == *digits).expect("some") + rest;
        text.extend(format!("{length} {key}=").bytes().chain(value.iter().copied()).chain([b'\n']));
    }
    text
}

/// A name as GNU's long names are stored.
pub(super) fn terminated(name: &str) -> Vec<u8> {
    name.bytes().chain([0]).collect()
}
