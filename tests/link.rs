//! Every kind of link, made by an ordinary user in namespaces of their own and spoken to as the gateway would;
//! and ping sockets, which few hosts allow outside of such a namespace.
//!
//! Each test starts this binary again below `unshare`, with the scenario in the environment; as root it first
//! makes a `/dev/net/tun` that everyone may open (in a private mount namespace) and becomes `nobody`. What the
//! machine lacks is reported as `skipped: why`.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rnet::config::{GuestRoute, Ipv4Plan, Ipv6Plan, LinkKind, LinkSpec, MacAddr, Network, Setup};
use rnet::io::link::Link;
use rnet::net::outbox::ETHERNET_BYTES;
use rnet::net::packet::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, Ethernet, EthernetFrame, IpHeader, IpPacket, pseudo_header,
};
use rnet::net::{Family, Offload, Outbox, PortId, RxOffload, TxOffload};
use rnet::sys::datagram::{self, Batch, Envelope, Received};
use rnet::sys::{link, netlink};
use smoltcp::wire::IpProtocol;

const SCENARIO: &str = "RNET_TEST_LINK";
const STATION: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 9]);
const MTU: u16 = 1500;
const PATIENCE: Duration = Duration::from_secs(5);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// The gateway's and the guest's address.
const FAMILIES: [(IpAddr, IpAddr); 2] =
    [(IpAddr::V4(GATEWAY), IpAddr::V4(GUEST)), (IpAddr::V6(GATEWAY6), IpAddr::V6(GUEST6))];

#[test]
fn tap_carries_offloaded_frames() {
    run("tap");
}

#[test]
fn a_tap_has_as_many_queues_as_asked_for() {
    run("queues");
}

#[test]
fn a_tap_that_exists_with_one_queue_keeps_it() {
    run("one-queue");
}

#[test]
fn plain_tap_carries_finished_frames() {
    run("tap-plain");
}

#[test]
fn packet_link_carries_offloaded_frames() {
    run("packet");
}

#[test]
fn auto_takes_the_tap_where_there_is_one() {
    run("auto");
}

#[test]
fn auto_takes_the_packet_link_without_a_tun_device() {
    run("hidden");
}

#[test]
fn an_interface_is_left_as_the_kernel_makes_it_if_asked() {
    run("bare");
}

#[test]
fn a_persistent_tap_is_taken_over_if_asked() {
    run("persistent");
}

#[test]
fn given_addresses_and_routes_are_set_as_far_as_possible() {
    run("given");
}

#[test]
fn ping_sockets_echo() {
    run("ping");
}

/// The body of every test, in the namespaces; does nothing in the outer run.
#[test]
fn inside() {
    let Ok(scenario) = std::env::var(SCENARIO) else {
        return;
    };
    match scenario.as_str() {
        "hidden" => without_tun(),
        "ping" => ping(),
        "bare" => bare(),
        "persistent" => persistent(),
        "given" => given(),
        "auto" => assert_eq!(Guest::new(LinkKind::Auto).kind, LinkKind::Tap),
        "tap" => converse(LinkKind::Tap),
        "tap-plain" => converse(LinkKind::TapPlain),
        "queues" => queues(),
        "one-queue" => one_queue(),
        "packet" => converse(LinkKind::Packet),
        other => panic!("no scenario {other}"),
    }
}

fn bare() {
    for kind in [LinkKind::Tap, LinkKind::TapPlain, LinkKind::Packet] {
        let spec = LinkSpec { mac: None, setup: Setup::Nothing, ..spec(kind) };
        let link = link::create(&spec, &network()).unwrap();
        let shown = ip(&["addr", "show"]);
        assert!(!shown.contains("10.0.2") && !shown.contains(",UP"), "{kind}: {shown}");
        let mac = link.mac.expect("known without being set").to_string();
        assert!(shown.contains(&format!("link/ether {mac}")), "{kind}: {mac}: {shown}");
        assert!(shown.contains("lo: <LOOPBACK> "), "{kind}: {shown}");
        let mut link = Link::queues(link).remove(0);
        assert!(link.read(&mut vec![0; Link::BUFFER_BYTES]).expect("a link that is down lives").is_none());
        ip(&["link", "set", "tap0", "up"]);
        drop(link);
        let mut tries = 0..500;
        while interfaces().len() > 1 && tries.next().is_some() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn persistent() {
    ip(&["tuntap", "add", "tap0", "mode", "tap"]);
    let refused = link::create(&spec(LinkKind::Auto), &network()).expect_err("taken").to_string();
    assert!(refused.contains("has an interface of that name") && refused.contains("--ifname"), "{refused}");
    for kind in [LinkKind::Tap, LinkKind::TapPlain] {
        let spec = LinkSpec { take_over: true, setup: Setup::Nothing, mac: None, ..spec(kind) };
        let link = link::create(&spec, &network()).unwrap();
        assert_eq!(link.kind, kind);
        assert!(ip(&["link", "show"]).contains(&link.mac.expect("an interface's").to_string()));
    }
    assert!(interfaces().contains(&"tap0".to_owned()), "it outlives its link");
}

fn given() {
    let addresses = vec!["192.0.2.5/24".parse().unwrap(), "2001:db8::5/64".parse().unwrap()];
    let route = |to: &str, via: Option<&str>| GuestRoute {
        destination: to.parse().unwrap(),
        via: via.map(|via| via.parse().unwrap()),
        metric: Some(77),
    };
    let routes = vec![
        route("198.51.100.0/24", None),
        route("0.0.0.0/0", Some("192.0.2.1")),
        route("::/0", Some("2001:db8::1")),
        route("203.0.113.0/24", Some("10.99.99.99")),
    ];
    let spec = LinkSpec { setup: Setup::Given { addresses, routes }, ..spec(LinkKind::Packet) };
    let link = link::create(&spec, &network()).unwrap();
    let notes = link.notes.join(" ");
    assert!(notes.contains("no route to 203.0.113.0/24") && !notes.contains("198.51"), "{notes}");
    let routes = ip(&["route"]) + &ip(&["-6", "route"]);
    for route in ["default via 192.0.2.1", "198.51.100.0/24", "default via 2001:db8::1", "metric 77"] {
        assert!(routes.contains(route), "{route}: {routes}");
    }
    assert!(!ip(&["addr"]).contains("10.0.2.100"));
}

/// What `ip` prints.
fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("iproute2");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn ping() {
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
    let guest = Guest::new(LinkKind::Packet);
    assert_eq!(guest.kind, LinkKind::Packet);
    for (family, loopback, request, reply) in [
        (Family::V4, IpAddr::from(Ipv4Addr::LOCALHOST), 8, 0),
        (Family::V6, IpAddr::from(Ipv6Addr::LOCALHOST), 128, 129),
    ] {
        let socket = datagram::open_ping(family).expect("the group is in range");
        let to = SocketAddr::new(loopback, 0);
        let message = [request, 0, 0, 0, 0, 0, 0, 1, b'h', b'i'];
        let envelope = Envelope { hop_limit: Some(17), ..Envelope::to(to) };
        datagram::send(&socket, &message, &envelope).expect("sent");
        let mut batch = Batch::new();
        assert_eq!(batch.receive(&socket).expect("loopback answers at once"), 1);
        let Received { from, payload, .. } = batch.front().expect("an answer");
        assert_eq!((from.ip(), payload.len()), (loopback, message.len()));
        assert_eq!((payload[0], &payload[6..10]), (reply, &[0, 1, b'h', b'i'][..]));
    }
}

fn queues() {
    let made = link::create(&LinkSpec { queues: 3, ..spec(LinkKind::Tap) }, &network()).expect("a TAP");
    let (here, there) = UnixStream::pair().unwrap();
    link::send(&made, &here).unwrap();
    let passed = link::receive(&there).unwrap();
    assert_eq!((made.queues.len(), passed.queues.len()), (3, 3));
    drop(made);
    // A flow comes in on the queue where the last answer to it was written.
    let (kind, notes) = (passed.kind, passed.notes.clone());
    let mut guests: Vec<Guest> =
        Link::queues(passed).into_iter().map(|link| Guest { link, kind, notes: notes.clone() }).collect();
    let socket = UdpSocket::bind((GUEST, 7000)).unwrap();
    let neighbor = Command::new("ip")
        .args(["neigh", "add", &GATEWAY.to_string(), "lladdr", "52:55:0a:00:02:02", "dev", "tap0"])
        .status();
    assert!(neighbor.unwrap().success());
    for guest in &mut guests {
        guest.send_datagrams((GATEWAY.into(), GUEST.into()), 7000, &[b"from this queue".to_vec()]);
        let (len, from) = socket.recv_from(&mut [0; 100]).unwrap();
        assert_eq!(len, 15);
        socket.send_to(b"to it", from).unwrap();
        let (packet, _) = guest.next(IpProtocol::Udp);
        assert!(packet.ends_with(b"to it"));
    }
}

fn one_queue() {
    let made = Command::new("ip").args(["tuntap", "add", "dev", "tap0", "mode", "tap", "vnet_hdr"]).status();
    assert!(made.unwrap().success());
    let spec = LinkSpec { queues: 3, take_over: true, ..spec(LinkKind::Tap) };
    let link = link::create(&spec, &network()).expect("a TAP");
    assert_eq!(link.queues.len(), 1);
    assert!(link.notes.iter().any(|note| note.contains("one queue instead of 3")), "{:?}", link.notes);
}

fn without_tun() {
    let refused = link::create(&spec(LinkKind::Tap), &network()).expect_err("there is no device");
    let text = refused.to_string();
    assert!(text.contains("/dev/net/tun") && text.contains("hint"), "{text}");
    let guest = Guest::new(LinkKind::Auto);
    assert_eq!(guest.kind, LinkKind::Packet);
    assert!(guest.notes.iter().any(|note| note.starts_with("tap: cannot open")));
}

fn converse(kind: LinkKind) {
    let mut guest = Guest::new(kind);
    assert_eq!(guest.kind, kind);
    assert_eq!(interfaces(), ["lo", "tap0"], "the far end is out of sight");
    addresses_are_usable_at_once(&mut guest);
    datagrams_pass(&mut guest);
    if guest.link.offload() != Offload::None {
        segments_pass(&mut guest);
        datagrams_in_one_frame(&mut guest);
    }
    if guest.link.offload() == Offload::ChecksumTsoAndUso {
        joined_datagrams_pass(&mut guest);
        joined_datagrams_need_no_larger_buffer(&mut guest);
    }
}

fn addresses_are_usable_at_once(guest: &mut Guest) {
    for (from, to) in FAMILIES {
        let socket = UdpSocket::bind((to, 7003)).expect("the address is not tentative");
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        guest.send_datagrams((from, to), 7003, &[b"first".into()]);
        let mut buffer = [0; 64];
        let (len, _) = socket.recv_from(&mut buffer).expect("packets to the address reach the guest");
        assert_eq!(&buffer[..len], b"first");
    }
    let subnets = netlink::host_subnets().expect("dump");
    for subnet in ["10.0.2.0/24", "fd00::/64", "127.0.0.0/8"] {
        assert!(subnets.contains(&subnet.parse().unwrap()), "{subnets:?}");
    }
    assert!(subnets.iter().all(|subnet| subnet.prefix_len() > 0));
}

fn datagrams_pass(guest: &mut Guest) {
    let socket = UdpSocket::bind((GUEST, 7000)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(b"from the guest", (GATEWAY, 9)).unwrap();
    guest.answer_arp();
    let (packet, offload) = guest.next(IpProtocol::Udp);
    assert!(packet.ends_with(b"from the guest"));
    let ip = IpPacket::parse_v4(&packet).unwrap();
    let offloaded = guest.link.offload() != Offload::None;
    assert_eq!(offload.partial_checksum, offloaded);
    assert_eq!(ip.transport_checksum_is_valid(), !offloaded);

    guest.send_datagrams(FAMILIES[0], 7000, &[b"to the guest".into()]);
    let mut buffer = [0; 64];
    let (len, from) = socket.recv_from(&mut buffer).expect("the guest accepts the checksum");
    assert_eq!(&buffer[..len], b"to the guest");
    assert_eq!(from, SocketAddr::from((GATEWAY, 9)));
}

/// A connection opened by hand from the gateway, with 20,000 bytes in one frame, and 200,000 back.
fn segments_pass(guest: &mut Guest) {
    let listener = TcpListener::bind((GUEST, 80)).unwrap();
    guest.send_tcp(1000, 0, SYN, &[]);
    let (synack, _) = guest.next(IpProtocol::Tcp);
    let their = u32::from_be_bytes(*synack[24..].first_chunk().unwrap()).wrapping_add(1);
    let data: Vec<u8> = (0..20_000u32).map(|n| (n * 7) as u8).collect();
    guest.send_tcp(1001, their, ACK, &data);
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut seen = vec![0; data.len()];
    stream.read_exact(&mut seen).expect("all segments arrive");
    assert!(seen == data);

    stream.set_nonblocking(true).unwrap();
    assert!(stream.write(&vec![1; 200_000]).unwrap() > 4 * usize::from(MTU));
    let (mut largest, mut segment) = (0, None);
    while largest <= usize::from(MTU) {
        let (packet, offload) = guest.next(IpProtocol::Tcp);
        if packet.len() > largest {
            (largest, segment) = (packet.len(), offload.segment_bytes);
        }
    }
    assert_eq!(segment, Some(1000), "the guest sends segments of the announced size");
    println!("largest frame from the guest: {largest} bytes");
}

/// UDP segmentation where the kernel has it; else the datagrams come one by one.
fn datagrams_in_one_frame(guest: &mut Guest) {
    let socket = UdpSocket::bind((GUEST, 7001)).unwrap();
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::UdpGsoSegment, &1000).unwrap();
    socket.send_to(&[9; 3500], (GATEWAY, 9)).unwrap();
    let (packet, offload) = guest.next(IpProtocol::Udp);
    match offload.segment_bytes {
        Some(bytes) => assert_eq!((bytes, packet.len()), (1000, 3528)),
        None => assert_eq!(packet.len(), 1028),
    }
    println!("UDP segmentation from the guest: {:?}", offload.segment_bytes);
}

/// What went into one frame arrives as it was sent, over both families.
fn joined_datagrams_pass(guest: &mut Guest) {
    for (from, to) in FAMILIES {
        let socket = UdpSocket::bind((to, 7002)).unwrap();
        let datagrams: Vec<Vec<u8>> = (0..40).map(|n| vec![n; if n < 39 { 1200 } else { 7 }]).collect();
        assert_eq!(guest.send_datagrams((from, to), 7002, &datagrams), 1, "one frame");
        assert!(received(&socket) == datagrams);
    }
}

/// A program that reads late has about as many as if they had come one by one: what the kernel charges to its buffer
/// for a datagram that it cut out of a frame is up to a sixth more on a TAP, and less on a packet link.
fn joined_datagrams_need_no_larger_buffer(guest: &mut Guest) {
    for bytes in [1, 200, 500, 1400] {
        let [joined, single] = [40, 1].map(|together| {
            let socket = UdpSocket::bind((GUEST, 7004)).unwrap();
            for _ in 0..2000 / together {
                guest.send_datagrams(FAMILIES[0], 7004, &vec![vec![1; bytes]; together]);
            }
            received(&socket).len()
        });
        println!("a buffer holds {joined} joined and {single} single datagrams of {bytes} bytes");
        assert!(single > 0 && joined * 5 >= single * 4);
    }
}

/// What waits on a socket.
fn received(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut buffer = [0; 2000];
    socket.set_nonblocking(true).unwrap();
    let mut next = || socket.recv_from(&mut buffer).ok().map(|(len, _)| buffer[..len].to_vec());
    std::iter::from_fn(&mut next).collect()
}

const SYN: u8 = 2;
const ACK: u8 = 16;

/// The guest's kernel is our own namespace's; this is the gateway's side of the link.
struct Guest {
    link: Link,
    kind: LinkKind,
    notes: Vec<String>,
}

impl Guest {
    fn new(kind: LinkKind) -> Self {
        let made = link::create(&spec(kind), &network()).unwrap_or_else(|error| panic!("{error}"));
        let (here, there) = UnixStream::pair().unwrap();
        link::send(&made, &here).unwrap();
        let passed = link::receive(&there).unwrap();
        assert_eq!((passed.kind, &passed.notes), (made.kind, &made.notes));
        println!("{}: {:?}", passed.kind, passed.notes);
        let (kind, notes) = (passed.kind, passed.notes.clone());
        Self { link: Link::queues(passed).remove(0), kind, notes }
    }

    fn frame(&mut self, wanted: impl Fn(&EthernetFrame<'_>) -> bool) -> (Vec<u8>, RxOffload) {
        let mut buffer = vec![0; Link::BUFFER_BYTES];
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.link.read(&mut buffer).expect("the link stands") {
                Some((bytes, offload)) => {
                    let frame = EthernetFrame::parse(bytes).unwrap();
                    assert_eq!(frame.source, STATION);
                    if wanted(&frame) {
                        return (frame.payload.to_vec(), offload);
                    }
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        panic!("the frame did not come");
    }

    fn next(&mut self, protocol: IpProtocol) -> (Vec<u8>, RxOffload) {
        self.frame(|frame| {
            frame.ethertype == ETHERTYPE_IPV4
                && IpPacket::parse_v4(frame.payload).is_ok_and(|ip| ip.protocol == protocol)
        })
    }

    fn answer_arp(&mut self) {
        let (request, _) = self.frame(|frame| frame.ethertype == ETHERTYPE_ARP);
        assert_eq!(request[24..28], GATEWAY.octets());
        let mut outbox = Outbox::new();
        ethernet().frame(&mut outbox, ETHERTYPE_ARP, 28, |reply| {
            reply.copy_from_slice(&request[..28]);
            reply[7] = 2;
            reply[8..14].copy_from_slice(&MacAddr::GATEWAY.0);
            reply[14..18].copy_from_slice(&GATEWAY.octets());
            reply[18..24].copy_from_slice(&STATION.0);
            reply[24..28].copy_from_slice(&GUEST.octets());
            TxOffload::None
        });
        self.send(&mut outbox, TxOffload::None);
    }

    /// Sends datagrams to `port` as the outbox puts them into frames, and returns the number of those.
    fn send_datagrams(&mut self, (from, to): (IpAddr, IpAddr), port: u16, payloads: &[Vec<u8>]) -> usize {
        let mut outbox = Outbox::new();
        let ethernet = Ethernet { offload: self.link.offload(), ..ethernet() };
        let (from, to) = (SocketAddr::new(from, 9), SocketAddr::new(to, port));
        for payload in payloads {
            assert!(ethernet.udp(&mut outbox, from, to, 64, payload));
        }
        let mut frames = 0;
        while let Some((_, frame, offload)) = outbox.front_frame() {
            self.link.write(frame, offload).expect("the link takes the frame");
            outbox.pop_frame();
            frames += 1;
        }
        frames
    }

    fn send_tcp(&mut self, sequence: u32, acknowledgement: u32, flags: u8, payload: &[u8]) {
        let options: &[u8] = if flags == SYN { &[2, 4, 0x03, 0xe8] } else { &[] };
        let header_bytes = 20 + options.len();
        let (from, to): (IpAddr, IpAddr) = (GATEWAY.into(), GUEST.into());
        let sum = pseudo_header(from, to, IpProtocol::Tcp, (header_bytes + payload.len()) as u32);
        let mut segment = Vec::new();
        segment.extend([0, 9, 0, 80]);
        segment.extend(sequence.to_be_bytes());
        segment.extend(acknowledgement.to_be_bytes());
        segment.extend([(header_bytes as u8 / 4) << 4, flags, 0xff, 0xff]);
        segment.extend(sum.to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(options);
        let start = ETHERNET_BYTES as u16 + 20;
        let offload = if payload.is_empty() {
            TxOffload::Checksum { start, offset: 16 }
        } else {
            TxOffload::Tso { ipv6: false, header_bytes: start + header_bytes as u16, mss: 1000, start }
        };
        let ip = IpHeader { source: from, destination: to, hop_limit: 64, protocol: IpProtocol::Tcp };
        let wide = Ethernet { mtu: 65_520, ..ethernet() };
        let mut outbox = Outbox::new();
        assert!(wide.ip(&mut outbox, ip, &segment, payload));
        self.send(&mut outbox, offload);
    }

    fn send(&mut self, outbox: &mut Outbox, offload: TxOffload) {
        let (_, frame, _) = outbox.front_frame().unwrap();
        self.link.write(frame, offload).expect("the link takes the frame");
    }
}

fn ethernet() -> Ethernet {
    Ethernet {
        port: PortId(0),
        from: MacAddr::GATEWAY,
        to: STATION,
        offload: Offload::ChecksumAndTso,
        mtu: MTU,
    }
}

fn spec(kind: LinkKind) -> LinkSpec {
    LinkSpec {
        kind,
        ifname: "tap0".into(),
        mac: Some(STATION),
        queues: 1,
        queues_given: false,
        take_over: false,
        setup: Setup::Plan,
        loopback: true,
        capture: None,
    }
}

fn network() -> Network {
    let ipv4 = Ipv4Plan::new("10.0.2.0/24".parse().unwrap()).unwrap();
    let ipv6 = Ipv6Plan::new("fd00::/64".parse().unwrap());
    Network { mtu: MTU, ..Network::new(ipv4, ipv6) }
}

fn interfaces() -> Vec<String> {
    let list = nix::net::if_::if_nameindex().unwrap();
    let mut names: Vec<_> =
        list.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Starts `inside` for `scenario` as an ordinary user with the tun device that it needs. One at a time: a process
/// that another thread forks meanwhile would hold the copied program open for writing, and so keep it from running.
fn run(scenario: &str) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let root = nix::unistd::geteuid().is_root();
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let binary = place.path().join("test");
    // By another process: a copy that is open for writing here cannot be executed while another test's child, started
    // meanwhile, holds it open too.
    let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&binary).status();
    assert!(copied.unwrap().success());
    if let Some(why) = obstacle(scenario, root) {
        println!("skipped: {why}");
        return;
    }
    let device = match scenario {
        "hidden" => "mount -t tmpfs none /dev/net",
        _ if root => "mknod $P/tun c 10 200 && chmod 666 $P/tun && mount --bind $P/tun /dev/net/tun",
        _ => "true",
    };
    let guest = "\"$P/test\" --exact inside --nocapture";
    let script = if root {
        format!(
            "{device} && exec setpriv --reuid=65534 --regid=65534 --clear-groups unshare --user --map-root-user --net {guest}"
        )
    } else {
        format!("{device} && exec {guest}")
    };
    let namespaces: &[&str] =
        if root { &["--mount"] } else { &["--user", "--map-root-user", "--net", "--mount"] };
    let Output { status, stdout, stderr } = Command::new("unshare")
        .args(namespaces)
        .args(["sh", "-c", &script])
        .env(SCENARIO, scenario)
        .env("P", place.path())
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&stdout));
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
}

fn obstacle(scenario: &str, root: bool) -> Option<String> {
    let trial = Command::new("unshare").args(["--user", "--map-root-user", "--net", "true"]).output();
    match trial {
        Err(error) => return Some(format!("unshare (util-linux): {error}")),
        Ok(Output { status, stderr, .. }) if !status.success() => {
            return Some(format!("no user namespaces: {}", String::from_utf8_lossy(&stderr).trim()));
        }
        Ok(_) => {}
    }
    if matches!(scenario, "packet" | "hidden" | "ping")
        || (root && std::path::Path::new("/dev/net/tun").exists())
    {
        return None;
    }
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    device.err().map(|error| format!("/dev/net/tun: {error}"))
}
