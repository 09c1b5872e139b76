//! The client's side of a conversation with `load serve`: a connection opens with one word, which says what
//! is wanted, and a newline. What the server counts is asked over a unix socket beside the measured network,
//! which a slow path can neither delay nor lose.

use std::io::{self, BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long a connection may take, and an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long one attempt to reach the server may take, and the pause after it.
const ATTEMPT: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(1);

/// Tries until the server has answered.
pub(crate) fn reach(to: SocketAddr) -> io::Result<()> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        match greet(to) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > give_up => return Err(error),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

fn greet(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, ATTEMPT)?;
    stream.set_read_timeout(Some(ATTEMPT))?;
    stream.write_all(b"crr\n")?;
    stream.read_exact(&mut [0])
}

/// A connection that has said what it wants.
pub(crate) fn connect(to: SocketAddr, word: &str) -> io::Result<TcpStream> {
    let mut stream = open(to)?;
    ask(&mut stream, word)?;
    Ok(stream)
}

/// A connection that has said nothing yet.
pub(crate) fn open(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Says what is wanted.
pub(crate) fn ask(stream: &mut TcpStream, word: &str) -> io::Result<()> {
    stream.write_all(format!("{word}\n").as_bytes())
}

/// What the server had counted at a moment of its own clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) at: Duration,
    pub(crate) stream_bytes: u64,
    pub(crate) datagrams_received: u64,
    pub(crate) datagrams_sent: u64,
}

/// The server's counts.
pub(crate) struct Control {
    question: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Control {
    /// Connects to the server's unix socket.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let question = UnixStream::connect(path)?;
        question.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { answers: BufReader::new(question.try_clone()?), question })
    }

    pub(crate) fn counts(&mut self) -> io::Result<Counts> {
        self.question.write_all(b"?")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [nanos, stream_bytes, datagrams_received, datagrams_sent] = numbers[..] else {
            return Err(Error::new(ErrorKind::InvalidData, format!("no counts: {line:?}")));
        };
        Ok(Counts { at: Duration::from_nanos(nanos), stream_bytes, datagrams_received, datagrams_sent })
    }
}
