//! `load serve`: one port, TCP and UDP, that sinks, sends, echoes and counts.
//!
//! One thread accepts, reads each connection's word and keeps the idle ones; whatever moves bytes gets a
//! thread of its own, since blocking calls answer fastest.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};

use crate::stream::end_at_once;
use crate::{datagram, say};

/// Bytes per read or write of a stream.
pub(crate) const CHUNK: usize = 256 * 1024;
/// Bytes of a request and of its answer.
pub(crate) const REQUEST: usize = 64;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// The longest word with its newline.
const WORD: usize = 16;
const LISTENER: Token = Token(0);

/// What a server has counted since it started.
#[derive(Debug)]
pub(crate) struct Tally {
    start: Instant,
    pub(crate) stream_bytes: AtomicU64,
    pub(crate) datagrams_received: AtomicU64,
    pub(crate) datagrams_sent: AtomicU64,
}

impl Tally {
    fn line(&self) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            "{} {} {} {}\n",
            self.start.elapsed().as_nanos(),
            count(&self.stream_bytes),
            count(&self.datagrams_received),
            count(&self.datagrams_sent)
        )
    }
}

/// Serves until killed.
pub(crate) fn serve(port: u16, socket: &Path) -> io::Result<()> {
    let tally = Arc::new(Tally {
        start: Instant::now(),
        stream_bytes: AtomicU64::new(0),
        datagrams_received: AtomicU64::new(0),
        datagrams_sent: AtomicU64::new(0),
    });
    let datagrams = UdpSocket::from(bind(port, Type::DGRAM, Protocol::UDP)?);
    let listener = bind(port, Type::STREAM, Protocol::TCP)?;
    listener.listen(BACKLOG)?;
    listener.set_nonblocking(true)?;
    let for_datagrams = Arc::clone(&tally);
    thread::spawn(move || datagram::answer(&datagrams, &for_datagrams));
    let control = listen(socket)?;
    let for_control = Arc::clone(&tally);
    thread::spawn(move || {
        for client in control.incoming().flatten() {
            // A client that went away is its own affair.
            let _ = answer(client, &for_control);
        }
    });
    say("ready")?;
    accept(TcpListener::from_std(listener.into()), &tally)
}

/// The unix socket at `path`, open to every user of the machine; an old one there is replaced.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o777))?;
    Ok(listener)
}

/// Tells one client the counts as often as it asks.
fn answer(mut client: UnixStream, tally: &Tally) -> io::Result<()> {
    let mut question = [0];
    loop {
        client.read_exact(&mut question)?;
        client.write_all(tally.line().as_bytes())?;
    }
}

fn bind(port: u16, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

fn accept(mut listener: TcpListener, tally: &Arc<Tally>) -> io::Result<()> {
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut waiting: HashMap<Token, TcpStream> = HashMap::new();
    let mut next = LISTENER.0;
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    next += 1;
                    poll.registry().register(&mut stream, Token(next), Interest::READABLE)?;
                    waiting.insert(Token(next), stream);
                }
            } else if let Some(mut stream) = waiting.remove(&event.token()) {
                match word(&mut stream).as_deref() {
                    Some("idle\n") => {
                        waiting.insert(event.token(), stream);
                    }
                    Some(word) => {
                        // A client that went away is its own affair.
                        let _ = poll.registry().deregister(&mut stream);
                        let _ = begin(word, stream, tally);
                    }
                    None => {}
                }
            }
        }
    }
}

/// What a connection wants; clients send it in one piece. None if it has ended.
fn word(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = [0; WORD];
    let mut length = 0;
    while length < WORD {
        match stream.read(&mut bytes[length..=length]) {
            Ok(1) => length += 1,
            _ => return None,
        }
        if bytes[length - 1] == b'\n' {
            return String::from_utf8(bytes[..length].to_vec()).ok();
        }
    }
    None
}

/// Does what `word` asks for.
fn begin(word: &str, mut stream: TcpStream, tally: &Arc<Tally>) -> io::Result<()> {
    if word == "crr\n" {
        // Closed here first, so that the client's ports are free again at once.
        return stream.write_all(&[0; REQUEST]);
    }
    let stream = std::net::TcpStream::from(stream);
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    end_at_once(&stream)?;
    let (word, tally) = (word.to_owned(), Arc::clone(tally));
    thread::spawn(move || match word.as_str() {
        "sink\n" => sink(stream, &tally),
        "source\n" => source(stream),
        "both\n" => {
            let back = stream.try_clone()?;
            thread::spawn(move || source(back));
            sink(stream, &tally)
        }
        "echo\n" => echo(stream),
        _ => Ok(()),
    });
    Ok(())
}

fn sink(mut stream: std::net::TcpStream, tally: &Tally) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            bytes => tally.stream_bytes.fetch_add(bytes as u64, Ordering::Relaxed),
        };
    }
}

fn source(mut stream: std::net::TcpStream) -> io::Result<()> {
    let chunk = vec![0x5a; CHUNK];
    loop {
        stream.write_all(&chunk)?;
    }
}

fn echo(mut stream: std::net::TcpStream) -> io::Result<()> {
    let mut request = [0; REQUEST];
    loop {
        stream.read_exact(&mut request)?;
        stream.write_all(&request)?;
    }
}
