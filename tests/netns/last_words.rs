//! What a command has sent before it ended arrives, however late it is taken.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::lab::{HOST, Host, Link, REMOTE};
use crate::process::{PATIENCE, Process, wait_for};

const LAST_WORDS: &str = include_str!("../guest/last_words.py");
const LAST_DATAGRAM: &str = "import socket, sys
socket.socket(type=socket.SOCK_DGRAM).sendto(b'last', (sys.argv[1], int(sys.argv[2])))";

over_links![a_client_gets_all_that_was_sent, a_datagram_sent_at_the_end_arrives, a_signal_ends_the_delivery,];
over_queues![a_client_gets_all_that_was_sent, a_datagram_sent_at_the_end_arrives];
over_any_link![a_spliced_client_gets_all_that_was_sent];

fn a_client_gets_all_that_was_sent(host: &Host) {
    let (guest, client) = last_words(host, |host| host.dial_from_remote((HOST, 8080)));
    // The guest's own kernel, with what it still held, goes at once with the far end of a packet link.
    let lost_with_it = if host.link() == Link::Packet { usize::MAX } else { 0 };
    let sent = sent_bytes(&guest);
    let got = drain(client);
    assert!(got <= sent && got.saturating_add(lost_with_it) >= sent, "{got} of {sent} bytes");
    assert_eq!(guest.wait().code(), 0);
}

fn a_spliced_client_gets_all_that_was_sent(host: &Host) {
    let (guest, client) = last_words(host, |host| host.dial(([127, 0, 0, 1], 8080)));
    let sent = sent_bytes(&guest);
    assert_eq!(drain(client), sent);
    assert_eq!(guest.wait().code(), 0);
}

fn a_signal_ends_the_delivery(host: &Host) {
    let begin = Instant::now();
    let (guest, _client) = last_words(host, |host| host.dial_from_remote((HOST, 8080)));
    guest.signal(Signal::SIGTERM);
    assert_eq!(guest.wait().code(), 0, "the command's own status");
    assert!(begin.elapsed() < PATIENCE);
}

fn a_datagram_sent_at_the_end_arrives(host: &Host) {
    let receiver = host.remote().within(|| UdpSocket::bind(SocketAddr::from((REMOTE, 0)))).expect("a port");
    let to = receiver.local_addr().expect("bound").port();
    receiver.set_read_timeout(Some(PATIENCE)).expect("not zero");
    for _ in 0..10 {
        host.python(&[], LAST_DATAGRAM, &[&REMOTE.to_string(), &to.to_string()]);
        let mut word = [0; 16];
        let len = receiver.recv(&mut word).expect("the guest's last word");
        assert_eq!(&word[..len], b"last");
    }
}

/// A guest that has sent all that it can to a client that takes nothing, and whose command has ended.
fn last_words(host: &Host, dial: impl Fn(&Host) -> std::io::Result<TcpStream>) -> (Process, TcpStream) {
    let mut guest = host.start_python(&["-p", "8080:80"], LAST_WORDS, &["80"]);
    guest.wait_for_output("ready\n");
    let client = dial(host).expect("published");
    guest.wait_for_output("accepted\n");
    // Ports close when the command has ended.
    let refuses = || dial(host).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    wait_for("the end of the command", || refuses().then_some(()));
    (guest, client)
}

/// What the guest says that it has sent.
fn sent_bytes(guest: &Process) -> usize {
    wait_for("the count", || {
        guest.stdout().strip_prefix("ready\naccepted\n")?.strip_suffix('\n')?.parse().ok()
    })
}

/// Bytes until the end of the stream.
fn drain(mut client: TcpStream) -> usize {
    let mut all = Vec::new();
    client.read_to_end(&mut all).expect("an end without a reset");
    all.len()
}
