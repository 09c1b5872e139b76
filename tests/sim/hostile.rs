//! A guest that sends whatever it likes: nothing panics, nothing stalls, and nothing is left.

use std::net::IpAddr;

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep, TcpHeader};
use rnet::config::Transport;
use rnet::net::{Duration, Offload, RxOffload};
use smoltcp::wire::TcpPacket;

use crate::end::{Closes, End, Ending};
use crate::guest::{self, MAC};
use crate::host::{Outcome, Remote};
use crate::pattern::Random;
use crate::wire::Quality;
use crate::world::{Setting, World, at, for_seeds, ip};

const FRAMES: usize = 3000;
const GUEST_PORT: u16 = 6000;

#[test]
fn random_bytes_do_nothing() {
    for_seeds(10, |seed| {
        let mut world = hostile_world(seed);
        for _ in 0..FRAMES {
            let mut frame = vec![0; world.random.below(200) as usize];
            frame.iter_mut().for_each(|byte| *byte = world.random.next() as u8);
            if frame.len() >= 14 && world.random.happens(900) {
                let ethertype = world.random.pick(&[[8, 0], [8, 6], [0x86, 0xdd]]);
                frame[..14].copy_from_slice(&header(ethertype));
            }
            let offload = any_offload(&mut world);
            world.send_frame(frame, offload);
        }
        world.finish();
    });
}

#[test]
fn mutated_frames_of_every_protocol_leave_nothing() {
    for_seeds(30, |seed| {
        let mut world = hostile_world(seed);
        let samples = samples();
        for round in 0..FRAMES {
            let mut frame = world.random.pick(&samples);
            mutate(&mut world.random, &mut frame);
            let offload = any_offload(&mut world);
            world.send_frame(frame, offload);
            if round % 100 == 0 {
                let pause = Duration::from_millis(world.random.below(1000));
                world.run_for(pause);
            }
        }
        world.finish();
    });
}

#[test]
fn every_combination_of_flags_meets_no_flow() {
    for setting in Setting::ALL {
        let mut world = World::new(0, setting, Quality::PERFECT);
        world.host.others = Outcome::Connects;
        for flags in 0..=255 {
            let port = 7000 + u16::from(flags);
            let packet = segment(&world, port, flags, 1000, 1000, 3, b"data");
            world.send_packet(&packet);
        }
        world.finish();
    }
}

#[test]
fn every_combination_of_flags_meets_an_open_flow() {
    for setting in Setting::ALL {
        for flags in 0..=255 {
            let mut world = World::new(u64::from(flags), setting, Quality::PERFECT);
            world.host.others = Outcome::Connects;
            let (seq, ack) = open_by_hand(&mut world);
            for urgent in [0, 1, 4, u16::MAX] {
                let data = world.guest.patterns().0.bytes(4);
                let packet = segment(&world, GUEST_PORT, flags, seq, ack, urgent, &data);
                world.send_packet(&packet);
            }
            world.guest.deaf_ports.clear();
            world.finish();
        }
    }
}

#[test]
fn urgent_data_is_data() {
    for setting in Setting::ALL {
        let mut world = World::new(0, setting, Quality::PERFECT);
        let talk = world.connect_later(GUEST_PORT, End::default().closes(Closes::OnceHeard));
        let (seq, ack) = open_by_hand(&mut world);
        let (says, _) = world.guest.patterns();
        let data = says.bytes(100);
        let (urgent, push_ack) = (0x20, 0x18);
        let first = segment(&world, GUEST_PORT, urgent | push_ack, seq, ack, 10, &data[..60]);
        let second = segment(&world, GUEST_PORT, push_ack, seq + 60, ack, 0, &data[60..]);
        world.send_packet(&first);
        world.send_packet(&second);
        world.run_for(Duration::from_secs(1));
        assert_eq!(world.host_report(talk).got, 100);
        world.guest.deaf_ports.clear();
        let reset = segment(&world, GUEST_PORT, 0x14, seq + 100, ack, 0, &[]);
        world.send_packet(&reset);
        world.finish();
        assert_eq!(world.host_report(talk).ending, Ending::Reset);
    }
}

#[test]
fn a_flood_of_syns_leaves_nothing() {
    for_seeds(3, |seed| {
        let mut world = hostile_world(seed);
        world.guest.silent = true;
        for port in 1..3000 {
            let packet = segment(&world, port, 0x02, port.into(), 0, 0, &[]);
            world.send_packet(&packet);
        }
        world.run_for(Duration::from_secs(60));
        // That of the published port's client.
        assert_eq!(world.gateway.flows(), 1);
        world.finish();
    });
}

#[test]
fn a_talk_goes_on_amid_the_noise() {
    for_seeds(10, |seed| {
        let mut world = hostile_world(seed);
        world.connect(End::sends(300_000), End::sends(300_000));
        let samples = samples();
        for _ in 0..FRAMES {
            let mut frame = world.random.pick(&samples);
            mutate(&mut world.random, &mut frame);
            world.send_frame(frame, RxOffload::default());
            if world.random.happens(50) {
                world.run_for(Duration::from_micros(100));
            }
        }
        world.finish();
    });
}

fn hostile_world(seed: u64) -> World {
    let mut world = World::new(seed, Setting::any(&mut Random::new(!seed)), Quality::PERFECT);
    world.host.others = Outcome::Connects;
    world.gateway.set_resolvers(&[ip("192.0.2.1"), ip("192.0.2.2")]);
    world.host.remotes.insert(ip("192.0.2.1"), Remote::Silence);
    let publish = world.publish(Transport::Udp, 53);
    world.host.published_datagram(world.now, publish, at("203.0.113.9:1000"), ip("192.0.2.10"), b"hello");
    world
}

fn any_offload(world: &mut World) -> RxOffload {
    if world.setting.offload == Offload::None {
        return RxOffload::default();
    }
    let segment_bytes = world.random.pick(&[None, Some(0), Some(1), Some(100), Some(1400), Some(u16::MAX)]);
    RxOffload { partial_checksum: world.random.happens(700), segment_bytes }
}

/// An Ethernet header towards the gateway.
fn header(ethertype: [u8; 2]) -> [u8; 14] {
    guest::frame(&[0x45])[..12]
        .iter()
        .copied()
        .chain(ethertype)
        .collect::<Vec<_>>()
        .try_into()
        .expect("14 bytes")
}

/// Cuts, lengthens or changes a frame a little.
fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        let at = random.below(frame.len() as u64) as usize;
        match random.below(8) {
            0 => frame.truncate(at.max(1)),
            1 => frame.extend_from_slice(&[0xa5; 9]),
            2 => frame[at] ^= 1 << random.below(8),
            3 => frame[at] = random.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            _ => frame[at] = random.next() as u8,
        }
    }
    // Where the headers are, a right checksum lets a change go further.
    if random.happens(500) && frame.len() >= 34 && frame[14] == 0x45 {
        smoltcp::wire::Ipv4Packet::new_unchecked(&mut frame[14..]).fill_checksum();
    }
}

/// One good frame of everything that the gateway understands.
fn samples() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut push = |step: &dyn Fn() -> PacketBuilderStep<IpHeaders>, port: u16, payload: &[u8]| {
        let (mut udp, mut syn, mut ack) = (Vec::new(), Vec::new(), Vec::new());
        step().udp(5000, port).write(&mut udp, payload).expect("a packet");
        step().tcp(5000, port, 1000, 64_000).syn().write(&mut syn, &[]).expect("a packet");
        step().tcp(5000, port, 1001, 64_000).ack(1).psh().write(&mut ack, payload).expect("a packet");
        packets.extend([udp, syn, ack]);
    };
    let query = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01";
    for (to, port) in [([198, 51, 100, 7], 7), ([10, 0, 2, 3], 53), ([10, 0, 2, 2], 80), ([255; 4], 67)] {
        push(&|| PacketBuilder::ipv4([10, 0, 2, 100], to, 64), port, query);
    }
    for (to, port) in [("2001:db8::7", 7), ("fd00::3", 53), ("fd00::2", 80), ("ff02::1:2", 547)] {
        push(&|| PacketBuilder::ipv6(octets("fd00::100"), octets(to), 64), port, query);
    }
    packets.extend(pings());
    packets.extend(fragments());
    let mut frames: Vec<Vec<u8>> = packets.iter().map(|packet| guest::frame(packet)).collect();
    frames.push(arp_request());
    frames
}

fn pings() -> Vec<Vec<u8>> {
    let mut packets = vec![Vec::new(); 4];
    for (packet, to) in packets[..2].iter_mut().zip([[198, 51, 100, 7], [10, 0, 2, 2]]) {
        let step = PacketBuilder::ipv4([10, 0, 2, 100], to, 64).icmpv4_echo_request(1, 2);
        step.write(packet, b"ping").expect("a packet");
    }
    let beyond = PacketBuilder::ipv6(octets("fd00::100"), octets("2001:db8::7"), 64);
    beyond.icmpv6_echo_request(1, 2).write(&mut packets[2], b"ping").expect("a packet");
    // A neighbour solicitation for the gateway.
    let solicitation = PacketBuilder::ipv6(octets("fd00::100"), octets("ff02::1:ff00:2"), 255);
    let body = octets("fd00::2");
    solicitation.icmpv6_raw(135, 0, [0; 4]).write(&mut packets[3], &body).expect("a packet");
    packets
}

/// The first and the last of two fragments of a datagram.
fn fragments() -> Vec<Vec<u8>> {
    let fragment = |field: u16, len: usize| {
        let mut packet = vec![0; 20 + len];
        packet[..20].copy_from_slice(&[
            0x45,
            0,
            0,
            (20 + len) as u8,
            0,
            9,
            0,
            0,
            64,
            17,
            0,
            0,
            10,
            0,
            2,
            100,
            198,
            51,
            100,
            7,
        ]);
        packet[6..8].copy_from_slice(&field.to_be_bytes());
        packet[20..28].copy_from_slice(&[0x13, 0x88, 0, 7, 0, 80, 0, 0]);
        smoltcp::wire::Ipv4Packet::new_unchecked(&mut packet[..]).fill_checksum();
        packet
    };
    vec![fragment(0x2000, 40), fragment(5, 40)]
}

fn arp_request() -> Vec<u8> {
    let fields = [0, 1, 8, 0, 6, 4, 0, 1];
    [&header([8, 6])[..], &fields, &MAC.0, &[10, 0, 2, 100], &[0; 6], &[10, 0, 2, 2]].concat()
}

fn octets(address: &str) -> [u8; 16] {
    match ip(address) {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
    }
}

/// A TCP segment from the guest's `port` to the same port of the remote machine.
fn segment(world: &World, port: u16, flags: u8, seq: u32, ack: u32, urgent: u16, data: &[u8]) -> Vec<u8> {
    let mut header = TcpHeader::new(port, port, seq, 64_000);
    header.acknowledgment_number = ack;
    header.urgent_pointer = urgent;
    let set = |bit: u8| flags & bit != 0;
    (header.fin, header.syn, header.rst, header.psh) = (set(1), set(2), set(4), set(8));
    (header.ack, header.urg, header.ece, header.cwr) = (set(0x10), set(0x20), set(0x40), set(0x80));
    let mut packet = Vec::new();
    match (world.guest_ip(), world.remote(port).ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            PacketBuilder::ipv4(from.octets(), to.octets(), 64).tcp_header(header).write(&mut packet, data)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            PacketBuilder::ipv6(from.octets(), to.octets(), 64).tcp_header(header).write(&mut packet, data)
        }
        _ => panic!("addresses of two families"),
    }
    .expect("a valid packet");
    packet
}

/// Opens a connection from [`GUEST_PORT`] without the guest's kernel. The next sequence and acknowledgment numbers.
fn open_by_hand(world: &mut World) -> (u32, u32) {
    world.guest.deaf_ports.insert(GUEST_PORT);
    let syn = segment(world, GUEST_PORT, 0x02, 999, 0, 0, &[]);
    world.send_packet(&syn);
    world.run_for(Duration::from_millis(50));
    let answer = world.guest.segments.first().expect("an answer to the SYN");
    let answer = TcpPacket::new_checked(&answer[..]).expect("a segment");
    assert!(answer.syn() && answer.ack());
    let ack = (answer.seq_number() + 1).0 as u32;
    let packet = segment(world, GUEST_PORT, 0x10, 1000, ack, 0, &[]);
    world.send_packet(&packet);
    world.run_for(Duration::from_millis(50));
    (1000, ack)
}
