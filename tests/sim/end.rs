//! What the two ends of a connection do, and how it went for them. The guest's application and the remote machine's
//! follow the same rules.

use rnet::net::{Duration, Instant};

/// The behaviour of one end.
#[derive(Clone, Debug)]
pub(crate) struct End {
    /// Bytes that it says.
    pub(crate) sends: u64,
    pub(crate) closes: Closes,
    pub(crate) reads: Reads,
    pub(crate) aborts: Option<Aborts>,
}

/// When an end says that it has finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closes {
    /// When all is said.
    OnceSent,
    /// When all is said and the other end has finished.
    OnceHeard,
    /// When all is said and this time has passed since the connection stood.
    After(Duration),
    Never,
}

/// How an end takes what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    Eagerly,
    /// So many bytes in each interval.
    Slowly(u64, Duration),
    /// Nothing for this time, then all.
    After(Duration),
    Never,
}

/// When an end gives up with a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aborts {
    /// This long after the connection stood.
    At(Duration),
    /// When it has sent and taken so many bytes.
    Moved(u64),
}

impl Default for End {
    fn default() -> Self {
        Self { sends: 0, closes: Closes::OnceSent, reads: Reads::Eagerly, aborts: None }
    }
}

impl End {
    pub(crate) fn sends(sends: u64) -> Self {
        Self { sends, ..Self::default() }
    }

    pub(crate) fn closes(self, closes: Closes) -> Self {
        Self { closes, ..self }
    }

    pub(crate) fn reads(self, reads: Reads) -> Self {
        Self { reads, ..self }
    }

    pub(crate) fn aborts(self, aborts: Aborts) -> Self {
        Self { aborts: Some(aborts), ..self }
    }

    /// Whether it neither gives up nor waits for ever.
    pub(crate) fn is_orderly(&self) -> bool {
        self.aborts.is_none() && self.closes != Closes::Never && self.reads != Reads::Never
    }

    /// Whether it closes now, having sent all.
    pub(crate) fn closes_now(&self, age: Duration, heard: bool) -> bool {
        match self.closes {
            Closes::OnceSent => true,
            Closes::OnceHeard => heard,
            Closes::After(time) => age >= time,
            Closes::Never => false,
        }
    }

    /// Whether it gives up now, having moved `moved` bytes.
    pub(crate) fn aborts_now(&self, age: Duration, moved: u64) -> bool {
        match self.aborts {
            Some(Aborts::At(time)) => age >= time,
            Some(Aborts::Moved(bytes)) => moved >= bytes,
            None => false,
        }
    }

    /// The ages at which it does something by itself.
    pub(crate) fn alarms(&self) -> impl Iterator<Item = Duration> {
        let closes = match self.closes {
            Closes::After(time) => Some(time),
            _ => None,
        };
        let aborts = match self.aborts {
            Some(Aborts::At(time)) => Some(time),
            _ => None,
        };
        let reads = match self.reads {
            Reads::After(time) => Some(time),
            _ => None,
        };
        [closes, aborts, reads].into_iter().flatten()
    }
}

impl Reads {
    /// Bytes that it takes now, having got `got`.
    pub(crate) fn allowance(self, age: Duration, got: u64) -> u64 {
        match self {
            Self::Eagerly => u64::MAX,
            Self::Slowly(bytes, every) => {
                (bytes * (age.total_micros() / every.total_micros())).saturating_sub(got)
            }
            Self::After(time) if age >= time => u64::MAX,
            Self::After(_) | Self::Never => 0,
        }
    }

    /// The age at which a slow reader that has got `got` takes more.
    pub(crate) fn next(self, got: u64) -> Option<Duration> {
        match self {
            Self::Slowly(bytes, every) => {
                Some(Duration::from_micros(every.total_micros() * (got / bytes + 1)))
            }
            Self::After(time) => Some(time),
            Self::Eagerly | Self::Never => None,
        }
    }
}

/// How a connection ended for one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It has not.
    Open,
    /// Both have said that they have finished, and all was taken.
    Orderly,
    /// The other end, or the way to it, has given up.
    Reset,
    /// This end has.
    Aborted,
    /// It never stood.
    Refused,
    /// An ICMP error has said that it can't be.
    Unreachable,
    /// The machine has forgotten it.
    Forgotten,
}

/// How it went for one end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    pub(crate) started: Instant,
    pub(crate) sent: u64,
    pub(crate) got: u64,
    /// The other end's finish was seen.
    pub(crate) heard: bool,
    pub(crate) ending: Ending,
}

impl Report {
    pub(crate) fn new(started: Instant) -> Self {
        Self { started, sent: 0, got: 0, heard: false, ending: Ending::Open }
    }
}
