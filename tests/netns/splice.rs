//! Published ports whose loopback clients the kernel joins with the guest.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::thread;

use nix::sys::signal::Signal;

use crate::lab::{Host, Root};
use crate::many::assert_each_has_its_own_echo;
use crate::process::{Process, descendants, is_alive, open_fds, wait_for};
use crate::published::{
    assert_echo, assert_reset, ready, send_back_what_a_half_closed_guest_sent, serve, wait_for_client,
};
use crate::stream;

const STREAM: &str = include_str!("../guest/stream.py");
const HALF_CLOSE: &str = include_str!("../guest/half_close.py");
const SERVE: &str = include_str!("../guest/serve.py");
const BYTES: usize = 64_000_000;
const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

over_links![loopback_client_appears_as_the_guest_itself, every_byte_arrives_both_ways];
over_any_link![
    client_may_close_its_direction_first,
    guest_may_close_its_direction_first,
    client_may_finish_before_the_guest_accepts,
    both_directions_at_once_keep_their_bytes,
    many_small_messages_keep_their_order,
    urgent_data_stops_nothing,
    server_is_reached_at_whatever_address_it_has,
    server_of_the_guests_loopback_is_not_reached,
    server_of_one_family_is_reached_from_the_other,
    refusal_is_a_reset,
    reset_by_the_guest_reaches_the_client,
    last_words_before_a_reset_arrive,
    reset_by_the_client_reaches_the_guest,
    five_hundred_clients_at_once_are_served,
    every_worker_splices,
    more_connections_than_the_guest_has_ports_are_served,
    nothing_stays_open,
    port_in_time_wait_is_used_again,
    factory_is_out_of_the_guests_sight,
    factory_has_no_rights,
    factory_ends_with_the_container,
    without_its_factory_clients_take_the_link,
    a_moment_without_descriptors_passes,
    nothing_is_made_for_nobody,
    ports_that_are_added_are_spliced_too,
];

fn loopback_client_appears_as_the_guest_itself(host: &Host) {
    let guest = serve(host, &["-p", "8080:80"], "80");
    for (client, appears_as) in LOOPBACKS.into_iter().zip(["10.0.2.100", "fd00::100"]) {
        assert_echo(&host.dial((client, 8080)).expect("published"));
        wait_for_client(&guest, appears_as);
    }
}

fn every_byte_arrives_both_ways(host: &Host) {
    let _guest = ready(host.start_python(&["-p", "8080:80"], STREAM, &["serve", "80", &BYTES.to_string()]));
    for client in LOOPBACKS {
        let mut sender = host.dial((client, 8080)).expect("published");
        sender.write_all(b"s").expect("connected");
        stream::send(&sender, BYTES);
        let mut count = String::new();
        sender.read_to_string(&mut count).expect("the count");
        assert_eq!(count, BYTES.to_string());
        let mut receiver = host.dial((client, 8080)).expect("published");
        receiver.write_all(b"r").expect("connected");
        assert_eq!(stream::receive(&receiver), BYTES);
    }
}

fn client_may_close_its_direction_first(host: &Host) {
    let guest = ready(host.start_python(&["-p", "8080:80"], HALF_CLOSE, &["serve", "80"]));
    let big = b"0123456789abcdef".repeat(65_536);
    let mut client = dial(host);
    client.write_all(&big).expect("the guest reads");
    client.shutdown(Shutdown::Write).expect("connected");
    let mut got = Vec::new();
    client.read_to_end(&mut got).expect("the other direction is open");
    assert_eq!(got, big);
    assert_eq!(guest.wait().success(), "ready\ncomplete\n");
}

fn guest_may_close_its_direction_first(host: &Host) {
    let guest = ready(guest_program(
        host,
        "stream.sendall(b'x' * 1000000); stream.shutdown(socket.SHUT_WR)
print(len(b''.join(iter(lambda: stream.recv(65536), b''))))",
    ));
    send_back_what_a_half_closed_guest_sent(guest, dial(host));
}

/// A guest whose queue is full drops the SYN, which is repeated after a second.
fn client_may_finish_before_the_guest_accepts(host: &Host) {
    let guest = host.start_python(
        &["-p", "8080:80"],
        "import socket
listener = socket.create_server(('', 80), backlog=0); print('ready', flush=True); input()
for _ in range(4):
    stream = listener.accept()[0]
    stream.sendall(b'got ' + b''.join(iter(lambda: stream.recv(9), b''))); stream.close()",
        &[],
    );
    let mut guest = ready(guest);
    let clients: Vec<_> = (0..4).map(|_| dial(host)).collect();
    for client in &clients {
        client.shutdown(Shutdown::Write).expect("connected");
    }
    guest.write("\n");
    for mut client in clients {
        let mut text = String::new();
        client.read_to_string(&mut text).expect("an answer");
        assert_eq!(text, "got ");
    }
    guest.wait().success();
}

fn both_directions_at_once_keep_their_bytes(host: &Host) {
    let _guest = serve(host, &["-p", "8080:80"], "80");
    let mut client = dial(host);
    let mut sender = client.try_clone().expect("a second handle");
    let pattern: Vec<u8> = (0..8_000_000u32).flat_map(u32::to_le_bytes).collect();
    let sent = pattern.clone();
    let sending = thread::spawn(move || {
        sender.write_all(&sent).expect("the guest reads");
        sender.shutdown(Shutdown::Write).expect("connected");
    });
    let mut echoed = Vec::new();
    client.read_to_end(&mut echoed).expect("an echo");
    sending.join().expect("all was sent");
    assert!(echoed == pattern, "{} bytes came back, changed", echoed.len());
}

/// Sizes around those at which another way through the kernel is taken.
fn many_small_messages_keep_their_order(host: &Host) {
    let _guest = serve(host, &["-p", "8080:80"], "80");
    let mut client = dial(host);
    client.set_nodelay(true).expect("an option");
    for (round, size) in [1, 63, 4095, 4096, 4097, 65_536, 1, 200_000, 2].iter().cycle().take(90).enumerate()
    {
        let message: Vec<u8> = (0..*size).map(|at: usize| (at ^ round) as u8).collect();
        client.write_all(&message).expect("the guest reads");
        let mut echoed = vec![0; *size];
        client.read_exact(&mut echoed).expect("an echo");
        assert!(echoed == message, "{size} bytes in round {round}");
    }
}

/// Reading stops at urgent data, though more is there.
fn urgent_data_stops_nothing(host: &Host) {
    let guest = ready(guest_program(
        host,
        "got = b''
while not got.endswith(b'end'): got += stream.recv(65536)
print('all', flush=True); stream.recv(1)",
    ));
    let client = dial(host);
    for _ in 0..50 {
        (&client).write_all(b"before").expect("connected");
        let flags = nix::sys::socket::MsgFlags::MSG_OOB;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&client);
        nix::sys::socket::send(fd, b"!", flags).expect("urgent data");
    }
    (&client).write_all(b"the end").expect("connected");
    wait_for("all of it", || guest.stdout().contains("all").then_some(()));
    drop(client);
    guest.wait().success();
}

fn server_is_reached_at_whatever_address_it_has(host: &Host) {
    for (address, clients) in
        [("0.0.0.0", &LOOPBACKS[..1]), ("10.0.2.100", &LOOPBACKS[..1]), ("fd00::100", &LOOPBACKS[1..])]
    {
        let _guest = listening_at(host, address);
        for client in clients {
            assert_greeted(host, *client, address);
        }
    }
}

fn server_of_the_guests_loopback_is_not_reached(host: &Host) {
    let _guest = listening_at(host, "127.0.0.1");
    assert_refused(host);
}

fn server_of_one_family_is_reached_from_the_other(host: &Host) {
    for (address, client) in [("0.0.0.0", LOOPBACKS[1]), ("fd00::100", LOOPBACKS[0])] {
        let _guest = listening_at(host, address);
        // What is said before the refusal is not lost with it, whichever comes first.
        for _ in 0..50 {
            assert_greeted(host, client, address);
        }
    }
}

fn refusal_is_a_reset(host: &Host) {
    for options in [&["-p", "8080:9"][..], &["-p", "8080:9", "--no-ipv6"]] {
        let mut guest = host.start(options, Root::Busybox, &["sh", "-c", "echo ready; cat"]);
        guest.wait_for_output("ready");
        for _ in 0..3 {
            assert_refused(host);
        }
    }
}

fn reset_by_the_guest_reaches_the_client(host: &Host) {
    let _guest = ready(guest_program(
        host,
        "stream.recv(1); stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\\1\\0\\0\\0\\0\\0\\0\\0')
stream.close(); import time; time.sleep(1000)",
    ));
    let mut client = dial(host);
    client.write_all(b"x").expect("connected");
    assert_reset(client);
}

/// A server that answers early and closes resets what it has not read (RFC 9112 section 9.6).
fn last_words_before_a_reset_arrive(host: &Host) {
    let _guest = ready(guest_program(
        host,
        "import time
while len(stream.recv(1 << 20, socket.MSG_PEEK)) < 1000: pass
stream.sendall(b'too much'); stream.close(); time.sleep(1000)",
    ));
    let mut client = dial(host);
    client.write_all(&[0; 1000]).expect("connected");
    let mut words = [0; 8];
    client.read_exact(&mut words).expect("the answer");
    assert_eq!(&words, b"too much");
    assert_reset(client);
}

fn reset_by_the_client_reaches_the_guest(host: &Host) {
    for read_first in [false, true] {
        let program = "try:
    while stream.recv(65536): pass
    print('end')
except ConnectionResetError: print('reset')";
        let half_closed = "stream.shutdown(socket.SHUT_WR)\n";
        let program = if read_first { half_closed.to_owned() + program } else { program.to_owned() };
        let guest = ready(guest_program(host, &program));
        let mut client = dial(host);
        client.write_all(b"x").expect("connected");
        if read_first {
            assert_eq!(client.read(&mut [0]).expect("the guest has finished"), 0);
        }
        socket_reset(client);
        assert_eq!(guest.wait().success(), "ready\nreset\n");
    }
}

fn five_hundred_clients_at_once_are_served(host: &Host) {
    let _guest = serve(host, &["-p", "8080:80"], "80");
    let clients: Vec<_> = (0..500).map(|_| dial(host)).collect();
    assert_each_has_its_own_echo(&clients);
}

fn every_worker_splices(host: &Host) {
    let guest = serve(host, &["--workers", "3", "-p", "8080:80"], "80");
    let clients: Vec<_> = (0..50).map(|_| dial(host)).collect();
    clients.iter().for_each(assert_echo);
    let spliced = || guest.stdout().lines().filter(|line| *line == "client 10.0.2.100").count();
    wait_for("fifty spliced clients", || (spliced() == 50).then_some(()));
}

/// Those that cannot have one take the link.
fn more_connections_than_the_guest_has_ports_are_served(host: &Host) {
    let range = "open('/proc/sys/net/ipv4/ip_local_port_range', 'w').write('40000 40009')\n";
    let mut guest =
        host.start_python(&["--cap-add", "NET_ADMIN", "-p", "8080:80"], &(range.to_owned() + SERVE), &["80"]);
    guest.wait_for_output("ready\n");
    let clients: Vec<_> = (0..30).map(|_| dial(host)).collect();
    clients.iter().for_each(assert_echo);
    wait_for_client(&guest, "10.0.2.100");
    wait_for_client(&guest, "10.0.2.2");
}

fn nothing_stays_open(host: &Host) {
    let guest = serve(host, &["-p", "8080:80"], "80");
    let round = || {
        let clients: Vec<_> = (0..100).map(|_| dial(host)).collect();
        clients.iter().for_each(assert_echo);
        clients.into_iter().step_by(2).for_each(socket_reset);
    };
    round();
    let settled = wait_for("the first round to end", || {
        let fds = open_fds(guest.pid());
        (fds < 200).then_some(fds)
    });
    for _ in 0..5 {
        round();
    }
    // Spare pipes and the stock of sockets vary a little.
    wait_for("the other rounds to end", || (open_fds(guest.pid()) < settled + 100).then_some(()));
}

fn port_in_time_wait_is_used_again(host: &Host) {
    let seen = host.sh(&["-p", "8080:80"], "cat /proc/sys/net/ipv4/tcp_tw_reuse");
    assert_eq!(seen, "1\n");
    let seen = host.sh(&["-p", "8080:80", "--no-splice"], "cat /proc/sys/net/ipv4/tcp_tw_reuse");
    assert_ne!(seen, "1\n");
}

fn factory_is_out_of_the_guests_sight(host: &Host) {
    let mut guest =
        host.start(&["-p", "8080:80"], Root::Busybox, &["sh", "-c", "ls -d /proc/[0-9]*; echo end; cat"]);
    guest.wait_for_output("end");
    assert_eq!(guest.stdout(), "/proc/1\nend\n");
    assert!(is_alive(factory(&guest).expect("one process makes sockets")));
}

fn factory_has_no_rights(host: &Host) {
    let guest = serve(host, &["-p", "8080:80"], "80");
    let factory = factory(&guest).expect("one process makes sockets");
    let status = std::fs::read_to_string(format!("/proc/{factory}/status")).expect("it runs");
    for line in ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "no {line:?} in {status}");
    }
    // What is not dumpable belongs to root in /proc, and cannot be traced by its own user.
    let owner = std::fs::metadata(format!("/proc/{factory}/environ")).expect("it runs").uid();
    let user = std::fs::metadata(format!("/proc/{}", guest.pid())).expect("it runs").uid();
    assert_ne!(owner, user);
}

fn factory_ends_with_the_container(host: &Host) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let guest = serve(host, &["-p", "8080:80"], "80");
        let factory = factory(&guest).expect("one process makes sockets");
        guest.signal(signal);
        guest.wait();
        wait_for("the factory to end", || (!is_alive(factory)).then_some(()));
    }
}

fn without_its_factory_clients_take_the_link(host: &Host) {
    let guest = serve(host, &["-p", "8080:80"], "80");
    assert_echo(&dial(host));
    let factory = factory(&guest).expect("one process makes sockets");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(factory), Signal::SIGKILL).expect("it runs");
    wait_for("a word about it", || guest.stderr().contains("socket factory is gone").then_some(()));
    assert_echo(&dial(host));
    wait_for_client(&guest, "10.0.2.2");
}

fn a_moment_without_descriptors_passes(host: &Host) {
    const CLIENTS: usize = 24;
    let guest = serve(host, &["-p", "8080:80"], "80");
    assert_echo(&dial(host));
    // Each client takes one, and the sockets that the factory sends in the place of those used up find no room.
    limit_fds(host, &guest, &(open_fds(guest.pid()) + CLIENTS).to_string());
    let clients: Vec<_> = (0..CLIENTS).map(|_| dial(host)).collect();
    clients[..CLIENTS / 2].iter().for_each(assert_echo);
    drop(clients);
    limit_fds(host, &guest, "");
    let spliced = || guest.stdout().lines().filter(|line| *line == "client 10.0.2.100").count();
    let before = spliced();
    let clients: Vec<_> = (0..50).map(|_| dial(host)).collect();
    clients.iter().for_each(assert_echo);
    wait_for("spliced clients", || (spliced() >= before + 50).then_some(()));
    assert!(!guest.stderr().contains("socket factory is gone"), "{}", guest.stderr());
}

/// Sets how many descriptors rnet may have; nothing is what it may have at most.
fn limit_fds(host: &Host, guest: &Process, soft: &str) {
    let hard = std::fs::read_to_string(format!("/proc/{}/limits", guest.pid())).expect("it runs");
    let hard = hard.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit");
    let hard = hard.split_whitespace().nth(1).expect("a hard limit");
    let soft = if soft.is_empty() { hard } else { soft };
    let (pid, limit) = (guest.pid().to_string(), format!("--nofile={soft}:{hard}"));
    host.start_as_user(&["prlimit", "--pid", &pid, &limit]).wait().success();
}

fn nothing_is_made_for_nobody(host: &Host) {
    for options in [&[][..], &["-p", "8080:80", "--no-splice"], &["-p", "8080:80/udp"]] {
        let mut guest = host.start(options, Root::Busybox, &["sh", "-c", "echo ready; cat"]);
        guest.wait_for_output("ready");
        assert_eq!(factory(&guest), None, "{options:?}");
    }
}

fn ports_that_are_added_are_spliced_too(host: &Host) {
    let guest = serve(host, &["--name", "box"], "80");
    host.start_rnet(&["port", "add", "box", "8080:80"]).wait().success();
    assert_echo(&dial(host));
    wait_for_client(&guest, "10.0.2.100");
}

/// The process of rnet that makes sockets.
fn factory(guest: &Process) -> Option<i32> {
    let comm = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    descendants(guest.pid()).into_iter().find(|pid| comm(*pid) == "rnet-sockets\n")
}

fn dial(host: &Host) -> TcpStream {
    host.dial((Ipv4Addr::LOCALHOST, 8080)).expect("published")
}

/// A guest that accepts one connection, `stream`, and runs `program`.
fn guest_program(host: &Host, program: &str) -> Process {
    let accept = "import socket
listener = socket.create_server(('', 80)); print('ready', flush=True)
stream = listener.accept()[0]\n";
    host.start_python(&["-p", "8080:80"], &(accept.to_owned() + program), &[])
}

fn assert_greeted(host: &Host, client: IpAddr, server: &str) {
    let mut client = host.dial((client, 8080)).expect("published");
    client.write_all(b"hi").expect("connected");
    client.shutdown(Shutdown::Write).expect("connected");
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap_or_else(|error| panic!("{server}: {error}"));
    assert_eq!(text, "hello hi", "{server}");
}

/// A guest that greets everybody who comes to `address`.
fn listening_at(host: &Host, address: &str) -> Process {
    let program = "import socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
listener = socket.create_server((sys.argv[1], 80), family=family); print('ready', flush=True)
while True:
    stream = listener.accept()[0]
    stream.sendall(b'hello ' + stream.recv(9)); stream.close()";
    ready(host.start_python(&["-p", "8080:80"], program, &[address]))
}

fn assert_refused(host: &Host) {
    match host.dial((Ipv4Addr::LOCALHOST, 8080)) {
        Ok(client) => assert_reset(client),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

fn socket_reset(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).expect("an option");
}
