//! The command line of pesto(1), which changes the ports of a network that runs under the name pasta.
//!
//! `-t` and `-u` are written as pasta's. In front of the first `-A` or `-D` they say what there shall be, behind one
//! what is added or deleted. Ports of the guest's loopback (`-T`, `-U`) stand while the network runs, and so do the
//! words
//! `auto` and, as what can be had changes, exclusions alone: they are refused.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::super::getopt::{Opt, Reader, Word};
use super::ports::{self, Spec};
use crate::cli::Usage;
use crate::config::{MAX_PUBLISHED, Publish, Transport};

/// The name that it answers to.
pub(in crate::cli) const NAME: &str = "pesto";

const HELP: &str = "\
Usage: pesto [OPTION]... PATH

Change the ports that lead to the guest of a running pasta, which was given -c PATH. Without any change, show them.

  -s, --show              show the ports, after all changes
  -A, --add               ports that follow are added to those that there are
  -D, --delete            ports that follow are deleted
  -C, --clear HOST        delete all ports that lead from the host to the guest
  -t, --tcp-ports SPEC    TCP ports that lead to the guest: none, or
                          [ADDR[%IF]/]PORT[-PORT][:[ADDR/]PORT[-PORT]],... with ~PORT[-PORT] to exclude some;
                          without -A or -D before, all that there shall be
  -u, --udp-ports SPEC    the same for UDP
  -d, --debug             say what is asked for, on standard error
  -h, --help              display this help message and exit
      --version           show version and exit
";

/// What is to be done with the ports of a running network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pesto {
    /// Where the network listens.
    pub socket: PathBuf,
    /// In this order.
    pub changes: Vec<Change>,
    /// Shows the ports afterwards.
    pub show: bool,
    /// Logs what is asked for.
    pub debug: bool,
}

/// One change. No port is twice in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// These shall be all that there are.
    Replace(Vec<Publish>),
    /// These shall be there.
    Add(Vec<Publish>),
    /// These shall not be there.
    Delete(Vec<Publish>),
}

impl Change {
    fn ports(&mut self) -> &mut Vec<Publish> {
        let (Self::Replace(ports) | Self::Add(ports) | Self::Delete(ports)) = self;
        ports
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Show,
    Add,
    Delete,
    Clear,
    TcpPorts,
    UdpPorts,
    TcpNs,
    UdpNs,
    Debug,
    Help,
    Version,
}

const OPTIONS: &[Opt<Is>] = &[
    flag(Is::Show, "show", Some(b's')),
    flag(Is::Add, "add", Some(b'A')),
    flag(Is::Delete, "delete", Some(b'D')),
    value(Is::Clear, "clear", b'C'),
    value(Is::TcpPorts, "tcp-ports", b't'),
    value(Is::UdpPorts, "udp-ports", b'u'),
    value(Is::TcpNs, "tcp-ns", b'T'),
    value(Is::UdpNs, "udp-ns", b'U'),
    flag(Is::Debug, "debug", Some(b'd')),
    flag(Is::Help, "help", Some(b'h')),
    flag(Is::Version, "version", None),
];

const fn flag(is: Is, long: &'static str, short: Option<u8>) -> Opt<Is> {
    Opt { is, long, short, takes_argument: false }
}

const fn value(is: Is, long: &'static str, short: u8) -> Opt<Is> {
    Opt { is, long, short: Some(short), takes_argument: true }
}

/// Understands `words`, which begin after the program's name.
pub(in crate::cli) fn parse(words: impl Iterator<Item = OsString>) -> Result<Pesto, Usage> {
    let mistake = |line: String| Usage::failed(String::new(), format!("{line}\n"));
    let usage = |line: String| Usage::failed(String::new(), format!("{line}\n{HELP}"));
    let mut call = Pesto { socket: PathBuf::new(), changes: Vec::new(), show: false, debug: false };
    let mut operands = Vec::new();
    for word in Reader::new(NAME, OPTIONS, words) {
        match word.map_err(usage)? {
            Word::Option(Is::Help, _) => return Err(Usage::text(HELP.to_owned())),
            Word::Option(Is::Version, _) => {
                return Err(Usage::text(format!("pesto {} (rnet)\n", env!("CARGO_PKG_VERSION"))));
            }
            Word::Option(is, argument) => call.set(is, &argument).map_err(mistake)?,
            Word::Operand(word) => operands.push(word),
        }
    }
    let Ok([path]) = <[OsString; 1]>::try_from(operands) else {
        return Err(usage("pesto: one PATH is needed, which pasta was given with -c".to_owned()));
    };
    call.show |= call.changes.is_empty();
    Ok(Pesto { socket: path.into(), ..call })
}

impl Pesto {
    fn set(&mut self, is: Is, argument: &OsStr) -> Result<(), String> {
        let text = argument.to_string_lossy();
        match is {
            Is::Show => self.show = true,
            Is::Debug => self.debug = true,
            Is::Add => self.changes.push(Change::Add(Vec::new())),
            Is::Delete => self.changes.push(Change::Delete(Vec::new())),
            Is::Clear if text.eq_ignore_ascii_case("HOST") => self.changes.push(Change::Replace(Vec::new())),
            Is::Clear if text.eq_ignore_ascii_case("SPLICE") => return Err(stands('C', &text)),
            Is::Clear => return Err(format!("Invalid interface {text}: there are HOST and SPLICE")),
            Is::TcpPorts => self.ports('t', &text, Transport::Tcp)?,
            Is::UdpPorts => self.ports('u', &text, Transport::Udp)?,
            Is::TcpNs => return Err(stands('T', &text)),
            Is::UdpNs => return Err(stands('U', &text)),
            Is::Help | Is::Version => {}
        }
        Ok(())
    }

    /// Ports without a word before them are all that there shall be.
    fn ports(&mut self, letter: char, text: &str, transport: Transport) -> Result<(), String> {
        if self.changes.is_empty() {
            self.changes.push(Change::Replace(Vec::new()));
        }
        let named = match ports::parse(text, true, None) {
            Some(Spec::None) => return Ok(()),
            Some(Spec::Ports(ports)) if !ports.all_but => ports,
            Some(_) => return Err(format!("-{letter} {text}: ports of a running network must be named")),
            None => return Err(format!("Invalid port specifier {text}")),
        };
        let Some(ports) = self.changes.last_mut().map(Change::ports) else { return Ok(()) };
        for publish in named.published(transport) {
            if ports.len() >= MAX_PUBLISHED as usize {
                return Err(format!("-{letter} {text}: more than {MAX_PUBLISHED} ports at once"));
            }
            if !ports.contains(&publish) {
                ports.push(publish);
            }
        }
        Ok(())
    }
}

/// Of what only the start of a network can say.
fn stands(letter: char, text: &str) -> String {
    format!(
        "-{letter} {text}: ports of the guest's loopback cannot be changed while the network runs; \
         give -T and -U to pasta"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podmans_calls_add_and_delete() {
        let [Change::Add(added)] = &changes("-A -t 127.0.0.1/8080:10.89.0.2/80 -u 53:10.89.0.2/53 /s")[..]
        else {
            panic!("one that adds")
        };
        let told: Vec<String> = added.iter().map(told).collect();
        assert_eq!(told, ["127.0.0.1:8080:80/tcp 10.89.0.2", "53:53/udp 10.89.0.2"]);
        let deleted = changes("--delete --tcp-ports 127.0.0.1/8080:10.89.0.2/80 -u 53:10.89.0.2/53 /s");
        assert_eq!(deleted, [Change::Delete(added.clone())]);
    }

    #[test]
    fn plain_ports_are_all_that_there_shall_be() {
        let [Change::Replace(ports)] = &changes("-t 80,81 -u 53 -t 80 /s")[..] else { panic!("one") };
        let told: Vec<String> = ports.iter().map(told).collect();
        assert_eq!(told, ["80:80/tcp -", "81:81/tcp -", "53:53/udp -"], "each once");
        assert_eq!(changes("-t none /s"), [Change::Replace(Vec::new())]);
        assert_eq!(changes("-C HOST /s"), changes("-t none -u none /s"));
    }

    #[test]
    fn changes_keep_their_order() {
        let [Change::Replace(_), Change::Delete(deleted), Change::Add(added)] =
            &changes("-t 80 -D -t 80 -A -t 81:82 /s")[..]
        else {
            panic!("three")
        };
        assert_eq!([told(&deleted[0]), told(&added[0])], ["80:80/tcp -", "81:82/tcp -"]);
    }

    #[test]
    fn a_path_alone_shows() {
        let call = call("/run/pasta.sock").expect("a command line");
        assert_eq!(
            call,
            Pesto { socket: "/run/pasta.sock".into(), changes: Vec::new(), show: true, debug: false }
        );
        assert!(!self::call("-A -t 80 /s").expect("a command line").show);
    }

    #[test]
    fn mistakes_are_told_with_their_cause() {
        for (line, cause) in [
            ("-A -t 80", "one PATH is needed"),
            ("-s /a /b", "one PATH is needed"),
            ("-A -t 70000 /s", "Invalid port specifier 70000"),
            ("-A -t auto /s", "-t auto: ports of a running network must be named"),
            ("-A -u ~80 /s", "-u ~80: ports of a running network must be named"),
            ("-A -T 80 /s", "-T 80: ports of the guest's loopback cannot be changed"),
            ("-D -U 53 /s", "-U 53: ports of the guest's loopback cannot be changed"),
            ("-C SPLICE /s", "-C SPLICE: ports of the guest's loopback cannot be changed"),
            ("-C eth0 /s", "Invalid interface eth0"),
            ("-A -t 1-20000 /s", "more than 16384 ports at once"),
            ("--bogus /s", "pesto: unrecognized option '--bogus'"),
        ] {
            let usage = call(line).expect_err(line);
            assert!(usage.to_string().contains(cause), "{line}: {usage}");
            assert_eq!(usage.code(), 1, "{line}");
        }
        for line in ["--help", "--version"] {
            assert_eq!(call(line).expect_err(line).code(), 0);
        }
    }

    fn changes(line: &str) -> Vec<Change> {
        call(line).expect("a command line").changes
    }

    fn call(line: &str) -> Result<Pesto, Usage> {
        parse(line.split(' ').map(OsString::from))
    }

    fn told(publish: &Publish) -> String {
        let target = publish.guest_addr.map_or("-".to_owned(), |target| target.to_string());
        format!("{publish} {target}")
    }
}
