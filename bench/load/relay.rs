//! A link with a delay and losses, where the kernel has no netem: two TAPs and a queue each way.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use tun_tap::{Iface, Mode};

use crate::say;

/// Frames on their way in one direction; more are dropped, as by a router.
const QUEUE: usize = 10_000;
/// The largest frame of a link with the usual MTU, with room to spare.
const FRAME: usize = 2048;
/// A TAP cannot be read before it is up.
const NOT_UP: Duration = Duration::from_millis(5);

/// Passes frames between the TAPs `near` and `far`, each way `delay_us` later, losing `loss_percent` of them.
pub(crate) fn relay(near: &str, far: &str, delay_us: u64, loss_percent: f64) -> io::Result<()> {
    let near = Arc::new(Iface::without_packet_info(near, Mode::Tap)?);
    let far = Arc::new(Iface::without_packet_info(far, Mode::Tap)?);
    let delay = Duration::from_micros(delay_us);
    for (from, to, seed) in [(&near, &far, 1), (&far, &near, 2)] {
        let (queue, arrivals) = mpsc::sync_channel(QUEUE);
        let (from, to) = (Arc::clone(from), Arc::clone(to));
        thread::spawn(move || read(&from, delay, Dice { state: seed, percent: loss_percent }, &queue));
        thread::spawn(move || write(&to, &arrivals));
    }
    say("ready")?;
    loop {
        thread::park();
    }
}

/// A frame and when it is due at the other end.
type Late = (Instant, Vec<u8>);

fn read(tap: &Iface, delay: Duration, mut dice: Dice, queue: &SyncSender<Late>) {
    let mut frame = [0; FRAME];
    loop {
        let Ok(length) = tap.recv(&mut frame) else {
            thread::sleep(NOT_UP);
            continue;
        };
        if dice.loses() {
            continue;
        }
        let late = (Instant::now() + delay, frame[..length].to_vec());
        if let Err(TrySendError::Disconnected(_)) = queue.try_send(late) {
            return;
        }
    }
}

fn write(tap: &Iface, arrivals: &Receiver<Late>) {
    for (due, frame) in arrivals {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // A TAP that is down or full loses the frame, as a wire would.
        let _ = tap.send(&frame);
    }
}

/// Losses that are the same in every run.
struct Dice {
    state: u64,
    percent: f64,
}

impl Dice {
    /// The middle bits of a 64-bit linear congruential generator (Knuth's multiplier).
    fn loses(&mut self) -> bool {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let draw = (self.state >> 33) as f64 / (1u64 << 31) as f64;
        draw * 100.0 < self.percent
    }
}
