//! The byte stream that transfers carry: it repeats with a period prime to every packet and buffer size, so
//! that a lost, doubled or moved piece shows. `tests/guest/stream.py` makes the same one.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::OnceLock;

const PERIOD: usize = 65_521;
const CHUNK: usize = 1 << 18;

/// The first `PERIOD + CHUNK` bytes, so that any chunk is one slice of it.
fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| {
        let mut state: u32 = 1;
        let period: Vec<u8> = (0..PERIOD)
            .map(|_| {
                state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345) & 0x7fff_ffff;
                state.to_be_bytes()[1]
            })
            .collect();
        period.iter().copied().cycle().take(PERIOD + CHUNK).collect()
    })
}

/// `len` bytes (at most a chunk) of the stream from `offset` on.
pub(crate) fn bytes(offset: usize, len: usize) -> &'static [u8] {
    &pattern()[offset % PERIOD..][..len]
}

/// Sends the first `total` bytes of the stream, then ends that direction.
pub(crate) fn send(mut to: &TcpStream, total: usize) {
    let mut sent = 0;
    while sent < total {
        let len = CHUNK.min(total - sent);
        to.write_all(bytes(sent, len)).unwrap_or_else(|error| panic!("after {sent} bytes or more: {error}"));
        sent += len;
    }
    to.shutdown(Shutdown::Write).expect("connected");
}

/// Receives until the other end is done; panics at the first byte that differs. The number of bytes.
pub(crate) fn receive(mut from: &TcpStream) -> usize {
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    loop {
        let len = match from.read(&mut buffer) {
            Ok(0) => return received,
            Ok(len) => len,
            // A socket that waits for so long at most does not go on by itself (signal(7)).
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => panic!("after {received} bytes: {error}"),
        };
        let expected = bytes(received, len);
        if let Some(at) = (0..len).find(|&at| buffer[at] != expected[at]) {
            panic!("byte {} differs", received + at);
        }
        received += len;
    }
}
