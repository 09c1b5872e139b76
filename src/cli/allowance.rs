//! `--memory`, `--cpus`, `--pids-limit` and their like, with docker's units and rules.

use clap::Args;

use crate::config::{Allowance, Swap};

const HEADING: &str = "Limits";

/// Below this nothing starts (docker's rule).
const LEAST_MEMORY_BYTES: u64 = 6 << 20;
/// The least quota of the kernel is 1 ms in 100 ms.
const LEAST_QUOTA_US: u64 = 1000;
/// Processors that anybody has.
const MOST_CPUS: f64 = 8192.0;

#[derive(Args, Debug)]
pub(super) struct AllowanceArgs {
    /// Memory that the container may use: bytes, or with b, k, m, g; at least 6m.
    #[arg(short, long, value_name = "SIZE", value_parser = memory, help_heading = HEADING)]
    memory: Option<u64>,

    /// Memory and swap together; -1 is all swap [default: twice --memory].
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = total,
        requires = "memory",
        allow_negative_numbers = true,
        help_heading = HEADING
    )]
    memory_swap: Option<Total>,

    /// How many processors' time it may use, such as 0.5.
    #[arg(long, value_name = "N", value_parser = cpus, help_heading = HEADING)]
    cpus: Option<u64>,

    /// Its share of processors that do not suffice for all, 2 to 262144, where others have 1024.
    #[arg(short, long, value_name = "N", value_parser = shares, help_heading = HEADING)]
    cpu_shares: Option<u16>,

    /// The processors that it may use, such as 0-3,5.
    #[arg(long, value_name = "LIST", value_parser = cpu_list, help_heading = HEADING)]
    cpuset_cpus: Option<String>,

    /// Processes and threads that it may have; -1 is no limit.
    #[arg(long, value_name = "N", value_parser = processes, allow_negative_numbers = true, help_heading = HEADING)]
    pids_limit: Option<Processes>,

    /// Its share of disks that do not suffice for all, 1 to 10000, where others have 100.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000), help_heading = HEADING)]
    io_weight: Option<u16>,
}

/// Memory and swap together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Total {
    Bytes(u64),
    /// As if not given.
    Default,
    Unlimited,
}

/// Of [`AllowanceArgs::pids_limit`]; `None` is no limit.
#[derive(Clone, Copy, Debug)]
struct Processes(Option<u64>);

/// What the options mean together. The error is a sentence for the user.
pub(super) fn settle(args: AllowanceArgs) -> Result<Allowance, String> {
    Ok(Allowance {
        memory_bytes: args.memory,
        swap: args
            .memory
            .map(|memory| swap(memory, args.memory_swap.unwrap_or(Total::Default)))
            .transpose()?,
        cpu_quota_us: args.cpus,
        cpu_weight: args.cpu_shares,
        cpus: args.cpuset_cpus,
        processes: args.pids_limit.and_then(|Processes(limit)| limit),
        io_weight: args.io_weight,
    })
}

/// Docker counts memory and swap together, the kernel apart.
fn swap(memory: u64, total: Total) -> Result<Swap, String> {
    match total {
        Total::Unlimited => Ok(Swap::Unlimited),
        Total::Default => Ok(Swap::Bytes(memory)),
        Total::Bytes(total) => total.checked_sub(memory).map(Swap::Bytes).ok_or_else(|| {
            "--memory-swap is memory and swap together, and so at least --memory; the same is no swap"
                .to_owned()
        }),
    }
}

fn memory(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if bytes < LEAST_MEMORY_BYTES { Err("at least 6m are needed".to_owned()) } else { Ok(bytes) }
}

fn total(text: &str) -> Result<Total, String> {
    match text {
        "-1" => Ok(Total::Unlimited),
        "0" => Ok(Total::Default),
        _ => size(text).map(Total::Bytes),
    }
}

/// A number, with a fraction if a unit follows, in powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    const FORM: &str = "it is a number of bytes such as 67108864, 64m or 1.5g";
    let lower = text.to_ascii_lowercase();
    let without_b = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
    let (digits, shift) = match without_b.strip_suffix(['k', 'm', 'g', 't', 'p']) {
        Some(digits) => (digits, 10 * (1 + "kmgtp".find(&without_b[digits.len()..]).unwrap_or_default())),
        None => (without_b, 0),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number = digits.parse::<f64>().ok().filter(|_| plain).ok_or(FORM)?;
    let bytes = number * (1u64 << shift) as f64;
    if bytes >= i64::MAX as f64 {
        Err(format!("{FORM}; this is more than there can be"))
    } else {
        Ok(bytes as u64)
    }
}

/// Microseconds of a period.
fn cpus(text: &str) -> Result<u64, String> {
    const FORM: &str = "it is a number of processors such as 0.5 or 2, at least 0.01";
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number = text.parse::<f64>().ok().filter(|number| plain && *number <= MOST_CPUS).ok_or(FORM)?;
    let quota = (number * Allowance::CPU_PERIOD_US as f64).round() as u64;
    if quota < LEAST_QUOTA_US { Err(FORM.to_owned()) } else { Ok(quota) }
}

/// The weight for cgroup v1's shares by which 2 is 1, 1024 is 100 and 262144 is 10000, as OCI runtimes have it since 2025.
fn shares(text: &str) -> Result<u16, String> {
    let shares = text.parse::<u32>().ok().filter(|shares| (2..=262_144).contains(shares));
    let exponent = f64::from(shares.ok_or("it is a number from 2 to 262144")?).log2();
    let weight = 10f64.powf((exponent * exponent + 125.0 * exponent) / 612.0 - 7.0 / 34.0);
    // Not to be rounded up by what a power in floating point may be too large.
    Ok(((weight - 1e-6).ceil() as u16).clamp(1, 10_000))
}

fn cpu_list(text: &str) -> Result<String, String> {
    let number =
        |text: &str| text.parse::<u32>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let valid = text.split(',').all(|part| match part.split_once('-') {
        Some((first, last)) => number(first).zip(number(last)).is_some_and(|(first, last)| first <= last),
        None => number(part).is_some(),
    });
    if valid { Ok(text.to_owned()) } else { Err("it is a list such as 0-3,5".to_owned()) }
}

fn processes(text: &str) -> Result<Processes, String> {
    match text.parse::<i64>() {
        Ok(-1 | 0) => Ok(Processes(None)),
        Ok(number) if number > 0 => Ok(Processes(Some(number.unsigned_abs()))),
        _ => Err("it is a number of processes, or -1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: AllowanceArgs,
    }

    fn allowance(words: &str) -> Result<Allowance, String> {
        let line = Line::try_parse_from(["rnet"].into_iter().chain(words.split_whitespace()));
        line.map_err(|error| error.to_string()).and_then(|line| settle(line.args))
    }

    #[test]
    fn nothing_is_limited_unless_asked_for() {
        assert!(allowance("").expect("valid").is_unlimited());
        assert!(allowance("--pids-limit -1").expect("valid").is_unlimited());
    }

    #[test]
    fn swap_is_what_is_beyond_memory() {
        for (words, swap) in [
            ("-m 100m", Swap::Bytes(100 << 20)),
            ("-m 100m --memory-swap 0", Swap::Bytes(100 << 20)),
            ("-m 100m --memory-swap 100m", Swap::Bytes(0)),
            ("-m 100m --memory-swap=0.5g", Swap::Bytes(412 << 20)),
            ("-m 100m --memory-swap -1", Swap::Unlimited),
        ] {
            let allowance = allowance(words).expect(words);
            assert_eq!((allowance.memory_bytes, allowance.swap), (Some(100 << 20), Some(swap)), "{words}");
        }
        for words in [
            "-m 100m --memory-swap 99m",
            "--memory-swap 1g",
            "-m 5m",
            "-m x",
            "-m -1",
            "-m 1e3",
            "-m 99999999999g",
        ] {
            assert!(allowance(words).is_err(), "{words}");
        }
    }

    #[test]
    fn processors_are_counted_in_microseconds() {
        assert_eq!(allowance("--cpus 0.5").map(|allowance| allowance.cpu_quota_us), Ok(Some(50_000)));
        assert_eq!(allowance("--cpus=2").map(|allowance| allowance.cpu_quota_us), Ok(Some(200_000)));
        for words in ["--cpus 0", "--cpus 0.001", "--cpus inf", "--cpus 9000", "--cpus 1e2"] {
            assert!(allowance(words).is_err(), "{words}");
        }
    }

    #[test]
    fn shares_become_weights_with_the_same_middle() {
        for (shares, weight) in [(2, 1), (1024, 100), (2048, 174), (512, 59), (262_144, 10_000)] {
            let found = allowance(&format!("--cpu-shares {shares}")).map(|allowance| allowance.cpu_weight);
            assert_eq!(found, Ok(Some(weight)), "{shares}");
        }
        assert!(allowance("-c 1").is_err() && allowance("-c 262145").is_err());
    }

    #[test]
    fn lists_and_numbers_are_checked() {
        assert_eq!(
            allowance("--cpuset-cpus 0-3,5").map(|allowance| allowance.cpus),
            Ok(Some("0-3,5".into()))
        );
        assert_eq!(allowance("--pids-limit 20").map(|allowance| allowance.processes), Ok(Some(20)));
        for words in
            ["--cpuset-cpus 3-1", "--cpuset-cpus ,", "--pids-limit x", "--pids-limit -2", "--io-weight 0"]
        {
            assert!(allowance(words).is_err(), "{words}");
        }
    }
}
