//! Streams arrive whole, whatever the link and the host's sockets do.

use rnet::config::Rate;
use rnet::net::{Duration, Offload};

use crate::end::{Closes, End, Reads};
use crate::host::Mood;
use crate::pattern::Random;
use crate::wire::Quality;
use crate::world::{Setting, World, for_seeds};

#[test]
fn a_perfect_link_carries_streams_both_ways() {
    for (seed, setting) in Setting::ALL.into_iter().enumerate() {
        let mut world = World::new(seed as u64, setting, Quality::PERFECT);
        world.connect(End::sends(3_000_000), End::sends(3_000_000));
        world.connect(End::sends(3_000_000), End::default());
        world.connect(End::default(), End::sends(3_000_000));
        world.finish();
    }
}

#[test]
fn a_lossy_link_loses_no_byte() {
    for_seeds(20, |seed| {
        let mut world = any_world(seed, Quality::LOSSY);
        world.connect(End::sends(200_000), End::sends(200_000));
        world.finish();
    });
}

#[test]
fn a_link_that_reorders_and_duplicates_changes_nothing() {
    for_seeds(20, |seed| {
        let mut world = any_world(seed, Quality::UNORDERED);
        world.connect(End::sends(300_000), End::sends(300_000));
        world.finish();
    });
}

#[test]
fn a_link_that_takes_few_frames_slows_its_sources() {
    for_seeds(10, |seed| {
        let mut world = any_world(seed, Quality::NARROW);
        for _ in 0..5 {
            world.connect(End::sends(200_000), End::sends(500_000));
        }
        world.finish();
    });
}

#[test]
fn host_sockets_may_block_at_any_call() {
    for_seeds(20, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        world.host.mood = Mood::MOODY;
        world.connect(End::sends(1_000_000), End::sends(1_000_000));
        world.connect(End::sends(200_000), End::sends(200_000).closes(Closes::OnceHeard));
        world.finish();
    });
}

#[test]
fn slow_readers_on_either_side_get_everything() {
    let slowly = Reads::Slowly(10_000, Duration::from_millis(100));
    for_seeds(10, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        world.connect(End::sends(1_500_000).reads(slowly), End::sends(1_500_000).reads(slowly));
        world.finish();
    });
}

#[test]
fn a_slow_link_carries_each_byte_once() {
    const BYTES: u64 = 300_000;
    for (seed, setting) in Setting::ALL.into_iter().enumerate() {
        let mut world = World::with(seed as u64, setting, Quality::PERFECT, |network| {
            network.rates.from_guest = Rate::new(200_000, 200_000);
        });
        world.connect(End::sends(BYTES), End::default());
        world.finish();
        let sent = world.gateway.counters().bytes_in;
        assert!(sent < BYTES * 6 / 5, "{setting:?}: {sent} bytes crossed the link");
    }
}

#[test]
fn two_hundred_streams_at_once() {
    for_seeds(2, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        world.host.mood = Mood::MOODY;
        for _ in 0..200 {
            let (up, down) = (world.random.below(100_000), world.random.below(100_000));
            world.connect(End::sends(up), End::sends(down));
        }
        world.finish();
    });
}

#[test]
fn a_large_segment_is_cut_only_where_the_link_does_so() {
    let frames = |offload| {
        let mut world = World::new(0, Setting { ipv6: false, mtu: 1500, offload }, Quality::PERFECT);
        world.connect(End::sends(1_000_000), End::default());
        world.finish();
        world.frames.0
    };
    assert!(frames(Offload::ChecksumAndTso) * 10 < frames(Offload::None));
}

fn any_world(seed: u64, quality: Quality) -> World {
    World::new(seed, Setting::any(&mut Random::new(!seed)), quality)
}
