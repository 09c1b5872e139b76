//! What becomes of a guest's attempt to connect.

use rnet::net::{Duration, HostError, Offload};

use crate::end::{Closes, End, Ending};
use crate::host::Outcome;
use crate::pattern::Random;
use crate::wire::Quality;
use crate::world::{Setting, Talk, World, at, for_seeds, ip};

const SOON: Duration = Duration::from_millis(3);

#[test]
fn the_guest_learns_why_it_could_not_connect() {
    let outcomes = [
        (HostError::Refused, Ending::Refused),
        (HostError::NetUnreachable, Ending::Unreachable),
        (HostError::HostUnreachable, Ending::Unreachable),
        (HostError::Prohibited, Ending::Unreachable),
        (HostError::Exhausted, Ending::Unreachable),
    ];
    for setting in Setting::ALL {
        for (error, ending) in outcomes {
            let mut world = World::new(0, setting, Quality::PERFECT);
            let talk = connect(&mut world, Outcome::Fails(error), SOON);
            world.finish();
            assert_eq!(world.guest_report(talk).ending, ending, "{error:?}");
            assert!(world.now < rnet::net::Instant::from_millis(100));
        }
    }
}

#[test]
fn a_guest_that_repeats_itself_is_connected_once() {
    for_seeds(10, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        connect(&mut world, Outcome::Connects, Duration::from_secs(20));
        world.finish();
        assert_eq!(world.host.connects, 1);
        assert!(world.frames.0 > 6);
    });
}

#[test]
fn a_remote_that_never_answers_leaves_nothing() {
    for_seeds(10, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        connect(&mut world, Outcome::Silence, SOON);
        world.run_for(Duration::from_secs(129));
        assert_eq!((world.gateway.flows(), world.host.connects), (1, 1));
        world.guest.forget_all();
        world.finish();
    });
}

#[test]
fn a_guest_that_gave_up_connecting_leaves_nothing() {
    for_seeds(10, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        connect(&mut world, Outcome::Connects, Duration::from_secs(2));
        world.run_for(Duration::from_secs(1));
        world.guest.forget_all();
        world.run_for(Duration::from_secs(2));
        assert_eq!(world.gateway.flows(), 0);
        world.finish();
    });
}

#[test]
fn a_guest_that_falls_silent_while_connecting_leaves_nothing() {
    for_seeds(10, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        connect(&mut world, Outcome::Connects, Duration::from_secs(2));
        world.run_for(Duration::from_secs(1));
        world.guest.silent = true;
        world.run_for(Duration::from_secs(60));
        assert_eq!(world.gateway.flows(), 0);
        world.finish();
    });
}

#[test]
fn a_guest_may_try_again_from_the_same_port() {
    for_seeds(10, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        let end = || End::sends(5000);
        world.connect_from(
            4000,
            end().closes(Closes::Never),
            end(),
            Outcome::Connects,
            Duration::from_secs(2),
        );
        world.run_for(Duration::from_secs(1));
        world.guest.forget_all();
        // The host connects in vain: the guest resets what answers its forgotten SYN.
        world.run_for(Duration::from_secs(2));
        world.connect_from(4000, end(), end(), Outcome::Connects, SOON);
        world.finish();
    });
}

#[test]
fn a_hundred_attempts_of_every_kind_on_a_bad_link() {
    for_seeds(10, |seed| {
        let mut world = any_world(seed, Quality::LOSSY);
        for _ in 0..100 {
            let fails = [
                HostError::Refused,
                HostError::NetUnreachable,
                HostError::HostUnreachable,
                HostError::Prohibited,
                HostError::Exhausted,
            ];
            let failure = Outcome::Fails(world.random.pick(&fails));
            let outcome = world.random.pick(&[Outcome::Connects, failure, Outcome::Silence]);
            let after = Duration::from_micros(world.random.below(3_000_000));
            connect(&mut world, outcome, after);
        }
        world.finish();
    });
}

#[test]
fn a_dns_server_that_refuses_is_followed_by_the_next() {
    for setting in Setting::ALL {
        let mut world = World::new(0, setting, Quality::PERFECT);
        let forwarder = at(if setting.ipv6 { "[fd00::3]:53" } else { "10.0.2.3:53" });
        world.gateway.set_resolvers(&["192.0.2.1", "192.0.2.2"].map(ip));
        world.connect_translated(forwarder, at("192.0.2.2:53"), End::sends(50), End::sends(70_000));
        world.finish();
        assert_eq!(world.host.connects, 2);
    }
}

#[test]
fn segments_respect_the_guests_segment_size() {
    // `offload` asserts the MTU; here the guest's own is smaller than the network's.
    for offload in [Offload::None, Offload::ChecksumAndTso] {
        let setting = Setting { ipv6: false, mtu: 1500, offload };
        let mut world = World::with(1, setting, Quality::PERFECT, |network| network.mtu = 65520);
        world.connect(End::sends(100_000), End::sends(100_000));
        world.finish();
    }
}

fn connect(world: &mut World, outcome: Outcome, after: Duration) -> Talk {
    let port = world.fresh_port();
    world.connect_from(port, End::sends(5000), End::sends(5000), outcome, after)
}

fn any_world(seed: u64, quality: Quality) -> World {
    World::new(seed, Setting::any(&mut Random::new(!seed)), quality)
}
