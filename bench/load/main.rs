//! The load generator of `bench/compare`: every sender, receiver and clock of a measurement, in one program.
//!
//! `load serve` answers what the other commands ask for, over TCP and UDP on one port; they connect to it,
//! print the line `begin` when the measured window opens and one line of JSON at its end, so that whoever
//! started them can read the CPU time of other processes at the same moments. It knows nothing of the tools
//! that are compared and runs the same system calls through all of them.

use std::env;
use std::io::{self, Error, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use peer::Control;

mod datagram;
mod peer;
mod relay;
mod server;
mod stream;
mod transact;

const USAGE: &str = "\
usage: load serve PORT SOCKET                                 SOCKET is a path, for those who ask for counts
       load stream ADDR:PORT SOCKET out|in|both STREAMS SECONDS
       load rr ADDR:PORT tcp|udp SECONDS
       load crr ADDR:PORT SECONDS
       load udp ADDR:PORT SOCKET out|in BYTES PER_SECOND SECONDS
                                                              BYTES may be a range, 64-1400; 0 per second is as
                                                              fast as it goes
       load idle ADDR:PORT FLOWS                              holds them until standard input ends
       load first ADDR:PORT                                   tries until one byte came back
       load relay TAP1 TAP2 DELAY_US LOSS_PERCENT             passes frames between two TAPs
       load mark                                              says that it runs
       load park                                              sleeps";

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    match run(&words.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nowhere is left to complain about a standard error that is closed.
            let _ = writeln!(io::stderr(), "load: {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> io::Result<()> {
    match *words {
        ["serve", port, socket] => server::serve(number(port)?, Path::new(socket)),
        ["stream", to, socket, direction, streams, time] => {
            let control = Control::open(Path::new(socket))?;
            stream::measure(number(to)?, control, direction.parse()?, number(streams)?, seconds(time)?)
        }
        ["rr", to, "tcp", time] => transact::tcp(number(to)?, seconds(time)?),
        ["rr", to, "udp", time] => transact::udp(number(to)?, seconds(time)?),
        ["crr", to, time] => transact::connects(number(to)?, seconds(time)?),
        ["udp", to, socket, direction, bytes, rate, time] => {
            let flood = datagram::Flood { sizes: number(bytes)?, per_second: number(rate)? };
            let control = Control::open(Path::new(socket))?;
            datagram::measure(number(to)?, control, direction.parse()?, flood, seconds(time)?)
        }
        ["idle", to, flows] => transact::idle(number(to)?, number(flows)?),
        ["first", to] => {
            peer::reach(number(to)?)?;
            begin()
        }
        ["relay", near, far, delay, loss] => relay::relay(near, far, number(delay)?, number(loss)?),
        ["mark"] => begin(),
        ["park"] => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        // Cargo starts every bench target with this word; there is nothing to measure without a peer.
        ["--bench", ..] => Ok(()),
        _ => Err(Error::new(ErrorKind::InvalidInput, USAGE)),
    }
}

fn number<T: FromStr>(word: &str) -> io::Result<T> {
    word.parse().map_err(|_| Error::new(ErrorKind::InvalidInput, format!("cannot read {word:?}\n{USAGE}")))
}

fn seconds(word: &str) -> io::Result<Duration> {
    Duration::try_from_secs_f64(number(word)?).map_err(Error::other)
}

/// Which way the bytes go, as the connecting end sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Out,
    In,
    Both,
}

impl FromStr for Direction {
    type Err = Error;

    fn from_str(word: &str) -> io::Result<Self> {
        match word {
            "out" => Ok(Self::Out),
            "in" => Ok(Self::In),
            "both" => Ok(Self::Both),
            _ => Err(Error::new(ErrorKind::InvalidInput, format!("no direction: {word:?}"))),
        }
    }
}

/// Says that the measured window opens.
fn begin() -> io::Result<()> {
    say("begin")
}

/// Prints a line at once, even into a pipe.
fn say(line: impl std::fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
