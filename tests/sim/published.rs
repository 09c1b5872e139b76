//! Clients of published ports, and guests that serve them, refuse them or ignore them.

use std::net::SocketAddr;

use rnet::config::Transport;
use rnet::net::{Duration, PublishId, Release};

use crate::end::{Aborts, Closes, End, Ending, Reads};
use crate::host::Mood;
use crate::pattern::Random;
use crate::wire::Quality;
use crate::world::{Setting, Talk, World, at, for_seeds};

const CLIENTS: [&str; 6] = [
    "203.0.113.9:51515",
    "127.0.0.1:51516",
    "[2001:db8::9]:51517",
    "[::1]:51518",
    "10.0.2.100:51519",
    "[::ffff:203.0.113.9]:51520",
];

#[test]
fn a_guest_serves_clients_from_everywhere() {
    for setting in Setting::ALL {
        let mut world = World::new(0, setting, Quality::PERFECT);
        let publish = world.publish(Transport::Tcp, 80);
        for client in CLIENTS.map(at) {
            listen(&mut world, "10.0.2.100:80");
            listen(&mut world, "[fd00::100]:80");
            world.client(publish, client, server(), End::sends(200_000), true);
        }
        world.finish();
    }
}

#[test]
fn a_hundred_clients_at_once_on_any_link() {
    for_seeds(6, |seed| {
        let quality = Random::new(seed).pick(&[Quality::PERFECT, Quality::LOSSY, Quality::UNORDERED]);
        let mut world = World::new(seed, Setting::any(&mut Random::new(!seed)), quality);
        world.host.mood = Mood::MOODY;
        let publish = world.publish(Transport::Tcp, 80);
        for port in 1000..1100 {
            listen(&mut world, "10.0.2.100:80");
            let client = SocketAddr::new(at(CLIENTS[0]).ip(), port);
            world.client(publish, client, server(), End::sends(50_000), true);
        }
        world.finish();
    });
}

#[test]
fn a_refusing_guest_is_a_reset_for_the_client_at_once() {
    for setting in Setting::ALL {
        for client in CLIENTS {
            let (mut world, publish) = published(setting);
            let talk = refused(&mut world, publish, client);
            world.run_for(Duration::from_millis(10));
            assert_eq!(world.release(talk), Some(Release::Reset));
            world.finish();
        }
    }
}

#[test]
fn a_guest_that_listens_in_the_other_family_serves_too() {
    for setting in Setting::ALL.into_iter().filter(|setting| setting.mtu >= 1280) {
        for (client, listens) in [(CLIENTS[2], "10.0.2.100:80"), (CLIENTS[0], "[fd00::100]:80")] {
            let (mut world, publish) = published(setting);
            listen(&mut world, listens);
            world.client(publish, at(client), server(), End::sends(200_000), true);
            world.finish();
        }
    }
}

#[test]
fn a_guest_that_ignores_its_clients_is_given_up() {
    for setting in Setting::ALL {
        let (mut world, publish) = published(setting);
        world.guest.deaf_ports.insert(80);
        let talk = refused(&mut world, publish, CLIENTS[0]);
        world.run_for(Duration::from_secs(25));
        assert_eq!(world.release(talk), None);
        world.run_for(Duration::from_secs(40));
        assert_eq!(world.release(talk), Some(Release::Reset));
        world.finish();
    }
}

#[test]
fn clients_may_leave_at_any_moment() {
    for_seeds(40, |seed| {
        let (mut world, publish) = published(Setting::any(&mut Random::new(!seed)));
        world.host.mood = Mood::MOODY;
        for port in 1000..1010 {
            listen(&mut world, "10.0.2.100:80");
            let gone = Aborts::At(Duration::from_micros(world.random.below(30_000)));
            let client = SocketAddr::new(at(CLIENTS[0]).ip(), port);
            world.client(publish, client, server(), End::sends(200_000).aborts(gone), true);
        }
        world.finish();
    });
}

#[test]
fn servers_may_give_up_at_any_moment() {
    for_seeds(40, |seed| {
        let (mut world, publish) = published(Setting::any(&mut Random::new(!seed)));
        for port in 1000..1010 {
            let gone = Aborts::Moved(world.random.below(200_000));
            world.guest.listen(at("10.0.2.100:80"), server().aborts(gone));
            let client = SocketAddr::new(at(CLIENTS[0]).ip(), port);
            world.client(publish, client, server().aborts(gone), End::sends(200_000), true);
        }
        world.finish();
    });
}

#[test]
fn clients_that_look_alike_are_told_apart() {
    // Loopback clients of both families come from the gateway; here three have the same port.
    let (mut world, publish) = published(Setting::ALL[2]);
    for client in ["127.0.0.1:1000", "127.0.0.2:1000", "127.0.0.3:1000"] {
        world.guest.deaf_ports.insert(80);
        refused(&mut world, publish, client);
    }
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.gateway.flows(), 3);
    world.finish();
}

#[test]
fn a_client_that_has_said_all_before_the_guest_answers_is_heard() {
    for_seeds(10, |seed| {
        let (mut world, publish) = published(Setting::any(&mut Random::new(!seed)));
        world.guest.deaf_ports.insert(80);
        let late = server().reads(Reads::After(Duration::from_secs(2)));
        world.guest.listen(at("10.0.2.100:80"), late.clone());
        let talk = world.client(publish, at(CLIENTS[0]), late, End::sends(100), true);
        world.run_for(Duration::from_secs(5));
        world.guest.deaf_ports.clear();
        world.finish();
        assert_eq!(world.guest_report(talk).ending, Ending::Orderly);
    });
}

fn published(setting: Setting) -> (World, PublishId) {
    let mut world = World::new(u64::from(setting.mtu), setting, Quality::PERFECT);
    let publish = world.publish(Transport::Tcp, 80);
    (world, publish)
}

fn server() -> End {
    End::sends(200_000).closes(Closes::OnceHeard)
}

fn listen(world: &mut World, address: &str) {
    world.guest.listen(at(address), server());
}

/// A client that the guest does not accept.
fn refused(world: &mut World, publish: PublishId, client: &str) -> Talk {
    world.client(publish, at(client), End::default(), End::sends(1000), false)
}
