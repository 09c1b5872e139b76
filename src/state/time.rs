//! Moments as RFC 3339 writes them, in UTC, with as many digits as are needed: `2026-11-22T08:09:10.5Z`.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const DAY_SECONDS: u64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01 in the Gregorian calendar.
const DAYS_BEFORE_EPOCH: u64 = 719_468;
/// Days of 400 years, after which the calendar repeats.
const ERA_DAYS: u64 = 146_097;
/// What stands for "not yet": docker's zero time.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A moment since 1970, or none yet. Earlier ones cannot be told apart from none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(Option<Duration>);

impl Timestamp {
    /// The present.
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).ok())
    }

    /// The moment `since_epoch` after 1970 began.
    pub fn at(since_epoch: Duration) -> Self {
        Self(Some(since_epoch))
    }

    /// The moment `before` this one.
    #[must_use]
    pub fn earlier(self, before: Duration) -> Self {
        Self(self.0.map(|since| since.saturating_sub(before)))
    }

    /// The time that has passed since; `None` if the moment has not come.
    pub fn age(self) -> Option<Duration> {
        Self::now().0?.checked_sub(self.0?)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(since) = self.0 else { return f.write_str(NEVER) };
        let (year, month, day) = civil(since.as_secs() / DAY_SECONDS);
        let second = since.as_secs() % DAY_SECONDS;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        match since.subsec_nanos() {
            0 => f.write_str("Z"),
            nanos => write!(f, ".{}Z", format!("{nanos:09}").trim_end_matches('0')),
        }
    }
}

impl FromStr for Timestamp {
    type Err = ();

    /// What [`fmt::Display`] writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        if text == NEVER {
            return Ok(Self(None));
        }
        let (date, time) = text.strip_suffix('Z').and_then(|text| text.split_once('T')).ok_or(())?;
        let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
        let [year, month, day] = numbers(date, '-')?;
        let [hour, minute, second] = numbers(time, ':')?;
        let sane = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
        if !sane || hour > 23 || minute > 59 || second > 60 || fraction.len() > 9 {
            return Err(());
        }
        let nanos: u32 = format!("{fraction:0<9}").parse().map_err(drop)?;
        let days = days_since_epoch(year, month, day);
        Ok(Self::at(Duration::new(days * DAY_SECONDS + hour * 3600 + minute * 60 + second, nanos)))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    /// What cannot be understood is "not yet".
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(text.parse().unwrap_or_default())
    }
}

fn numbers(text: &str, separator: char) -> Result<[u64; 3], ()> {
    let numbers: Vec<u64> = text.split(separator).map(str::parse).collect::<Result<_, _>>().map_err(drop)?;
    numbers.try_into().map_err(drop)
}

/// Year, month and day of a day since 1970-01-01. Years begin in March here, so that a leap day is their last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + DAYS_BEFORE_EPOCH;
    let (era, day) = (days / ERA_DAYS, days % ERA_DAYS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// The inverse of [`civil`].
fn days_since_epoch(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, year) = (year / 400, year % 400);
    let month = if month > 2 { month - 3 } else { month + 9 };
    let day = (153 * month + 2) / 5 + day - 1;
    era * ERA_DAYS + year * 365 + year / 4 - year / 100 + day - DAYS_BEFORE_EPOCH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339_and_understood_again() {
        for (seconds, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_827_696, 0, "2000-02-29T12:34:56Z"),
            (1_709_251_199, 500_000_000, "2024-02-29T23:59:59.5Z"),
            (4_107_542_400, 1, "2100-03-01T00:00:00.000000001Z"),
        ] {
            let moment = Timestamp::at(Duration::new(seconds, nanos));
            assert_eq!(moment.to_string(), text);
            assert_eq!(text.parse(), Ok(moment));
        }
        assert_eq!(Timestamp::default().to_string().parse(), Ok(Timestamp::default()));
    }

    #[test]
    fn nonsense_is_no_moment() {
        for text in
            ["", "now", "2024-02-29", "2024-13-01T00:00:00Z", "1-1-1T1:1:1Z", "2024-01-01T00:00:00.x1Z"]
        {
            assert_eq!(text.parse::<Timestamp>(), Err(()), "{text}");
        }
    }
}
