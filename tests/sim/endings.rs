//! However a connection ends, both ends learn what they can and the gateway keeps nothing of it.

use rnet::net::{Duration, Release};

use crate::end::{Aborts, Closes, End, Ending, Reads};
use crate::host::{Mood, Outcome};
use crate::pattern::Random;
use crate::wire::Quality;
use crate::world::{Setting, World, for_seeds};

/// More than both rings of an endpoint and the guest's own together.
const MORE_THAN_RINGS: u64 = 1_500_000;

#[test]
fn hosts_may_fail_at_any_moment() {
    for_seeds(60, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        for _ in 0..10 {
            let (guest, host) = (any_end(&mut world.random), any_end(&mut world.random));
            let aborts = any_abort(&mut world.random);
            world.connect(guest, host.aborts(aborts));
        }
        world.finish();
    });
}

#[test]
fn guests_may_abort_at_any_moment() {
    for_seeds(60, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        for _ in 0..10 {
            let (guest, host) = (any_end(&mut world.random), any_end(&mut world.random));
            let aborts = any_abort(&mut world.random);
            world.connect(guest.aborts(aborts), host);
        }
        world.finish();
    });
}

#[test]
fn both_may_give_up_on_a_bad_link() {
    for_seeds(60, |seed| {
        let quality = if seed % 2 == 0 { Quality::LOSSY } else { Quality::UNORDERED };
        let mut world = any_world(seed, quality);
        for _ in 0..5 {
            let (guest, host) = (any_end(&mut world.random), any_end(&mut world.random));
            let aborts = any_abort(&mut world.random);
            // The guest's reset may be lost, and then the host's end is all that is heard of.
            let patience = Aborts::At(Duration::from_secs(300));
            world.connect(guest.aborts(aborts), host.aborts(patience));
        }
        world.finish();
    });
}

#[test]
fn a_failed_host_is_a_reset_for_the_guest() {
    for_seeds(10, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        let failing = End::sends(500_000).closes(Closes::Never).aborts(Aborts::Moved(100_000));
        let talk = world.connect(End::sends(500_000).closes(Closes::Never), failing);
        world.finish();
        assert_eq!(world.guest_report(talk).ending, Ending::Reset);
        assert_eq!(world.release(talk), Some(Release::Reset));
    });
}

#[test]
fn an_aborting_guest_is_a_reset_for_the_host() {
    for_seeds(10, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        let aborting = End::sends(500_000).closes(Closes::Never).aborts(Aborts::Moved(100_000));
        let talk = world.connect(aborting, End::sends(500_000).closes(Closes::Never));
        world.finish();
        assert_eq!(world.host_report(talk).ending, Ending::Reset);
        assert_eq!(world.release(talk), Some(Release::Reset));
    });
}

#[test]
fn an_idle_host_that_fails_after_its_end_is_noticed() {
    for_seeds(10, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        let host = End::sends(1000).aborts(Aborts::At(Duration::from_secs(30)));
        let talk = world.connect(End::default().closes(Closes::Never), host);
        world.run_for(Duration::from_secs(40));
        assert_eq!(world.guest_report(talk).ending, Ending::Reset);
        world.finish();
    });
}

#[test]
fn half_closes_in_either_order() {
    for_seeds(40, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        world.host.mood = if seed % 2 == 0 { Mood::MOODY } else { Mood::default() };
        let (guest, host) = (any_end(&mut world.random), any_end(&mut world.random));
        world.connect(guest.clone().closes(Closes::OnceHeard), host.clone());
        world.connect(guest.clone(), host.clone().closes(Closes::OnceHeard));
        world.connect(guest.clone().closes(Closes::After(Duration::from_secs(100))), host.clone());
        world.connect(guest, host.closes(Closes::After(Duration::from_secs(100))));
        world.finish();
    });
}

#[test]
fn simultaneous_closes() {
    for_seeds(40, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        for _ in 0..10 {
            let closes = Closes::After(Duration::from_micros(200_000 + world.random.below(40)));
            let (up, down) = (world.random.below(3000), world.random.below(3000));
            world.connect(End::sends(up).closes(closes), End::sends(down).closes(closes));
        }
        world.finish();
    });
}

#[test]
fn a_host_that_reads_late_gets_all_of_a_guest_that_has_gone() {
    // Longer than TIME-WAIT, and than a half-closed guest is waited for.
    for delay in [5, 9, 10, 11, 15, 60, 601, 1200] {
        for setting in Setting::ALL {
            let mut world = World::new(delay, setting, Quality::PERFECT);
            let reads = Reads::After(Duration::from_secs(delay));
            world.connect(End::sends(200_000), End::sends(1000).reads(reads));
            world.connect(End::sends(200_000).closes(Closes::OnceHeard), End::sends(1000).reads(reads));
            world.connect(End::sends(MORE_THAN_RINGS), End::sends(1000).reads(reads));
            let both = End::sends(200_000).closes(Closes::After(Duration::from_millis(500)));
            world.connect(both.clone(), both.reads(reads));
            world.finish();
        }
    }
}

#[test]
fn a_remote_that_never_reads_holds_its_flow_until_it_fails() {
    for_seeds(10, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        let fails = Aborts::At(Duration::from_secs(400));
        let deaf = End::default().reads(Reads::Never).closes(Closes::Never).aborts(fails);
        world.connect(End::sends(MORE_THAN_RINGS), deaf.clone());
        world.connect(End::sends(100_000), deaf.clone());
        let leaves = Aborts::At(Duration::from_secs(5));
        let left = world.connect(End::sends(MORE_THAN_RINGS).aborts(leaves), deaf);
        world.run_for(Duration::from_secs(6));
        assert_eq!(world.release(left), Some(Release::Reset));
        assert_eq!(world.gateway.flows(), 2);
        world.finish();
    });
}

#[test]
fn a_flow_that_only_waits_for_its_host_costs_no_turns() {
    let mut world = World::new(0, Setting::ALL[0], Quality::PERFECT);
    let reads = Reads::After(Duration::from_secs(1000));
    world.connect(End::sends(200_000).closes(Closes::OnceHeard), End::sends(1000).reads(reads));
    world.finish();
    assert!(world.turns < 5000, "{} turns", world.turns);
}

#[test]
fn a_guest_that_reads_late_gets_all() {
    for delay in [30, 300, 1200] {
        for setting in Setting::ALL {
            let mut world = World::new(delay, setting, Quality::PERFECT);
            let reads = Reads::After(Duration::from_secs(delay));
            world.connect(End::sends(1000).reads(reads), End::sends(MORE_THAN_RINGS));
            world.connect(End::sends(1000).closes(Closes::OnceHeard).reads(reads), End::sends(100_000));
            world.connect(
                End::sends(1000).reads(reads),
                End::sends(MORE_THAN_RINGS).closes(Closes::OnceHeard),
            );
            world.finish();
        }
    }
}

#[test]
fn a_half_closed_guest_that_has_forgotten_ends_with_a_probe() {
    for_seeds(10, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        world.connect(End::sends(1000), End::sends(1000).closes(Closes::Never));
        world.connect(End::sends(1000).closes(Closes::Never), End::sends(1000));
        world.run_for(Duration::from_secs(1));
        world.guest.forget_all();
        world.run_for(Duration::from_secs(61));
        assert_eq!(world.gateway.flows(), 0);
        world.finish();
    });
}

#[test]
fn a_half_closed_guest_that_is_silent_ends_with_its_time() {
    for_seeds(10, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        world.connect(End::sends(1000), End::sends(1000).closes(Closes::Never));
        world.connect(End::sends(1000).closes(Closes::Never), End::sends(1000));
        world.run_for(Duration::from_secs(1));
        world.guest.silent = true;
        // The first probe after a minute, and ten without an answer.
        world.run_for(Duration::from_secs(650));
        assert_eq!(world.gateway.flows(), 2);
        world.run_for(Duration::from_secs(30));
        assert_eq!(world.gateway.flows(), 0);
        world.finish();
    });
}

#[test]
fn a_half_closed_guest_that_answers_is_left_alone() {
    for_seeds(5, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        let hour = Closes::After(Duration::from_secs(1300));
        let talks = [
            world.connect(End::sends(1000), End::default().closes(hour)),
            world.connect(End::default().closes(hour), End::sends(1000)),
        ];
        world.run_for(Duration::from_secs(1200));
        assert_eq!(world.gateway.flows(), 2);
        world.finish();
        for talk in talks {
            assert_eq!(world.release(talk), Some(Release::Close));
        }
    });
}

#[test]
fn four_numbers_are_free_again_at_once() {
    for_seeds(40, |seed| {
        let mut world = any_world(seed, Quality::PERFECT);
        for _ in 0..5 {
            let (guest, host) = (any_end(&mut world.random), any_end(&mut world.random));
            let talk = world.connect_from(4000, guest, host, Outcome::Connects, Duration::from_millis(1));
            while world.guest_report(talk).ending == Ending::Open {
                world.run_for(Duration::from_millis(10));
            }
        }
        world.finish();
    });
}

#[test]
fn four_numbers_are_free_again_while_the_host_still_reads() {
    for closes in [Closes::OnceHeard, Closes::OnceSent] {
        let mut world = World::new(0, Setting::ALL[0], Quality::PERFECT);
        let late = End::sends(1000).reads(Reads::After(Duration::from_secs(60)));
        let guest = End::sends(100_000).closes(closes);
        let first = world.connect_from(4000, guest, late, Outcome::Connects, Duration::ZERO);
        world.run_for(Duration::from_secs(1));
        assert_eq!(world.guest_report(first).ending, Ending::Orderly);
        world.connect_from(4000, End::sends(5000), End::sends(5000), Outcome::Connects, Duration::ZERO);
        world.finish();
    }
}

fn any_world(seed: u64, quality: Quality) -> World {
    let mut world = World::new(seed, Setting::any(&mut Random::new(!seed)), quality);
    if world.random.happens(500) {
        world.host.mood = Mood::MOODY;
    }
    world
}

fn any_end(random: &mut Random) -> End {
    let bytes = random.pick(&[0, 1, 1000, 30_000, 400_000]);
    let slowly = Reads::Slowly(20_000, Duration::from_millis(100));
    let late = Reads::After(Duration::from_secs(random.within(1..=30)));
    End::sends(bytes).reads(random.pick(&[Reads::Eagerly, Reads::Eagerly, slowly, late]))
}

fn any_abort(random: &mut Random) -> Aborts {
    let at = Duration::from_micros(random.below(500_000));
    let moved = random.below(300_000);
    random.pick(&[Aborts::At(at), Aborts::Moved(moved)])
}
