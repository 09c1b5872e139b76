//! The kernel's program of a filter (Documentation/networking/filter.rst); pure.
//!
//! Each machine has a part, which begins with the calls that depend on their arguments, and goes on with the numbers in
//! ascending order, as runs of one action. The kernel asks once for each number that needs no look at arguments, and
//! remembers (since Linux 5.11), so that nothing is won by a tree.

use std::collections::BTreeMap;

use libc::sock_filter;

use super::{Action, Condition, Filter, Rule, Test};

/// Of `struct seccomp_data`: where the number of the system call is, the architecture, and the arguments of 8 bytes each.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;
/// Where the halves of an argument are.
const LOW: u32 = if cfg!(target_endian = "little") { 0 } else { 4 };
const HIGH: u32 = 4 - LOW;
/// Numbers from here on are those of the x32 ABI on x86_64, which few kernels have, and nobody's elsewhere.
const X32_NUMBERS: u32 = 0x4000_0000;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const IF_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// The rules of a filter by a machine's numbers.
pub(super) struct Calls {
    /// Conditions and what happens if all hold, in order; the last has none.
    by_number: BTreeMap<u32, Vec<(Vec<Condition>, Action)>>,
    otherwise: Action,
    newer: Action,
}

impl Calls {
    pub(super) fn new(filter: &Filter, numbers: &BTreeMap<&str, u32>) -> Self {
        let mut by_number: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        let (conditional, plain): (Vec<&Rule>, Vec<_>) =
            filter.rules.iter().partition(|rule| !rule.conditions.is_empty());
        for rule in conditional.into_iter().chain(plain) {
            for number in rule.calls.iter().filter_map(|name| numbers.get(name.as_ref())) {
                by_number.entry(*number).or_default().push((rule.conditions.clone(), rule.action));
            }
        }
        for rules in by_number.values_mut() {
            rules.push((Vec::new(), filter.otherwise));
            let decided = rules.iter().position(|(conditions, _)| conditions.is_empty());
            rules.truncate(decided.map_or(rules.len(), |last| last + 1));
        }
        Self { by_number, otherwise: filter.otherwise, newer: filter.newer }
    }

    /// What happens whatever the arguments are: from each number up to the next one's.
    fn runs(&self) -> Vec<(u32, Action)> {
        let mut runs = vec![(0, self.otherwise)];
        let mut next = 0;
        let mut extend = |from, action| {
            if runs.last().is_none_or(|(_, last)| *last != action) {
                runs.push((from, action));
            }
        };
        for (number, rules) in &self.by_number {
            if *number > next {
                extend(next, self.otherwise);
            }
            // Of a call with conditions nothing is left to say here, and so it prolongs any run.
            if let [(_, action)] = rules[..] {
                extend(*number, action);
            }
            next = number + 1;
        }
        extend(next, self.newer);
        runs
    }

    fn instructions(&self) -> Vec<sock_filter> {
        let mut program = vec![load(NUMBER_AT)];
        program.extend(guarded(IF_AT_LEAST, X32_NUMBERS, &[done(Action::MISSING)]));
        for (number, rules) in self.by_number.iter().filter(|(_, rules)| rules.len() > 1) {
            let tests: Vec<_> =
                rules.iter().flat_map(|(conditions, action)| rule(conditions, *action)).collect();
            program.extend(guarded(IF_EQUAL, *number, &tests));
        }
        let runs = self.runs();
        let ends = runs.iter().skip(1).map(|(from, _)| *from);
        for ((_, action), end) in runs.iter().zip(ends) {
            program.extend([jump(IF_AT_LEAST, end, 1, 0), done(*action)]);
        }
        program.extend(runs.last().map(|(_, action)| done(*action)));
        program
    }
}

/// The program that goes by each machine's rules, and ends whoever comes from another.
pub(super) fn of(machines: impl Iterator<Item = (u32, Calls)>) -> Vec<sock_filter> {
    let mut program = vec![load(ARCHITECTURE_AT)];
    for (architecture, calls) in machines {
        program.extend(guarded(IF_EQUAL, architecture, &calls.instructions()));
    }
    program.push(done(Action::KILL_PROCESS));
    program
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

const fn load(at: u32) -> sock_filter {
    jump(LOAD, at, 0, 0)
}

const fn done(action: Action) -> sock_filter {
    jump(RETURN, action.0, 0, 0)
}

/// `body`, for when the test holds. It has to decide in the end, as it leaves something else loaded.
fn guarded(test: u16, k: u32, body: &[sock_filter]) -> Vec<sock_filter> {
    let mut guarded = vec![jump(test, k, 1, 0), jump(JUMP, body.len() as u32, 0, 0)];
    guarded.extend_from_slice(body);
    guarded
}

/// Where a test leads.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// Behind the condition, which holds.
    Holds,
    /// Behind the rule, as the condition does not hold.
    Fails,
}

/// Decides if all conditions hold, and otherwise goes on behind itself. Of so many conditions as there may be it is
/// far shorter than the longest jump.
fn rule(conditions: &[Condition], action: Action) -> Vec<sock_filter> {
    let mut program = vec![done(action)];
    for condition in conditions.iter().rev() {
        let steps = steps(*condition);
        let behind_rule = steps.len() + program.len();
        let resolved = steps.iter().enumerate().map(|(at, (code, k, yes, no))| {
            let offset = |to: &To| match to {
                To::Next => 0,
                To::Holds => (steps.len() - at - 1) as u8,
                To::Fails => (behind_rule - at - 1) as u8,
            };
            jump(*code, *k, offset(yes), offset(no))
        });
        program = resolved.chain(program.iter().copied()).collect();
    }
    program
}

/// Compares the upper halves, and where they leave it open the lower ones. What does not jump goes on.
fn steps(condition: Condition) -> Vec<(u16, u32, To, To)> {
    use To::{Fails, Holds, Next};
    let argument = ARGUMENTS_AT + 8 * u32::from(condition.argument);
    let (high, low) = ((condition.value >> 32) as u32, condition.value as u32);
    let load = |half: u32| (LOAD, argument + half, Next, Next);
    let ordered = |above: To, below: To, last: (u16, u32, To, To)| {
        vec![load(HIGH), (IF_GREATER, high, above, Next), (IF_EQUAL, high, Next, below), load(LOW), last]
    };
    match condition.test {
        Test::Equal => {
            vec![load(HIGH), (IF_EQUAL, high, Next, Fails), load(LOW), (IF_EQUAL, low, Next, Fails)]
        }
        Test::NotEqual => {
            vec![load(HIGH), (IF_EQUAL, high, Next, Holds), load(LOW), (IF_EQUAL, low, Fails, Next)]
        }
        Test::Greater => ordered(Holds, Fails, (IF_GREATER, low, Next, Fails)),
        Test::AtLeast => ordered(Holds, Fails, (IF_AT_LEAST, low, Next, Fails)),
        Test::Less => ordered(Fails, Holds, (IF_AT_LEAST, low, Fails, Next)),
        Test::AtMost => ordered(Fails, Holds, (IF_GREATER, low, Fails, Next)),
        Test::Masked(mask) => vec![
            load(HIGH),
            (AND, (mask >> 32) as u32, Next, Next),
            (IF_EQUAL, high, Next, Fails),
            load(LOW),
            (AND, mask as u32, Next, Next),
            (IF_EQUAL, low, Next, Fails),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: u32 = 7;
    const NUMBERS: [(&str, u32); 6] =
        [("read", 0), ("write", 1), ("open", 2), ("clone", 5), ("socket", 6), ("seccomp", 9)];

    /// What the kernel would do about a system call.
    fn verdict(program: &[sock_filter], architecture: u32, number: u32, arguments: &[u64]) -> Action {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let holds = match code {
                LOAD => {
                    loaded = word(architecture, number, arguments, k);
                    continue;
                }
                AND => {
                    loaded &= k;
                    continue;
                }
                JUMP => {
                    at += k as usize;
                    continue;
                }
                IF_EQUAL => loaded == k,
                IF_AT_LEAST => loaded >= k,
                IF_GREATER => loaded > k,
                _ => return Action(k),
            };
            at += usize::from(if holds { jt } else { jf });
        }
    }

    fn word(architecture: u32, number: u32, arguments: &[u64], at: u32) -> u32 {
        match at {
            NUMBER_AT => number,
            ARCHITECTURE_AT => architecture,
            _ => {
                let argument = arguments.get((at - ARGUMENTS_AT) as usize / 8).copied().unwrap_or_default();
                let half = at % 8;
                if half == HIGH { (argument >> 32) as u32 } else { argument as u32 }
            }
        }
    }

    fn program(filter: &Filter) -> Vec<sock_filter> {
        of([(HERE, Calls::new(filter, &BTreeMap::from(NUMBERS)))].into_iter())
    }

    fn decide(filter: &Filter, name: &str, arguments: &[u64]) -> Action {
        verdict(&program(filter), HERE, BTreeMap::from(NUMBERS)[name], arguments)
    }

    #[test]
    fn only_listed_calls_are_allowed() {
        let filter =
            Filter::allowing(vec![Rule::of(&["write", "open", "seccomp", "unheard_of"], Action::ALLOW)]);
        for name in ["write", "open", "seccomp"] {
            assert_eq!(decide(&filter, name, &[]), Action::ALLOW, "{name}");
        }
        for name in ["read", "clone", "socket"] {
            assert_eq!(decide(&filter, name, &[]), Action::REFUSE, "{name}");
        }
        for number in [10, X32_NUMBERS - 1, X32_NUMBERS + 1, u32::MAX] {
            assert_eq!(verdict(&program(&filter), HERE, number, &[]), Action::MISSING, "{number}");
        }
        assert_eq!(verdict(&program(&filter), HERE + 1, 1, &[]), Action::KILL_PROCESS);
    }

    #[test]
    fn only_forbidden_calls_are_the_end() {
        let filter = Filter::forbidding(vec![Rule::of(&["read", "socket"], Action::KILL_PROCESS)]);
        for name in ["read", "socket"] {
            assert_eq!(decide(&filter, name, &[]), Action::KILL_PROCESS, "{name}");
        }
        for name in ["write", "clone", "seccomp"] {
            assert_eq!(decide(&filter, name, &[]), Action::ALLOW, "{name}");
        }
        assert_eq!(verdict(&program(&filter), HERE, X32_NUMBERS, &[]), Action::MISSING);
        assert_eq!(verdict(&program(&filter), HERE + 1, 1, &[]), Action::KILL_PROCESS);
    }

    #[test]
    fn each_machine_has_its_numbers() {
        let filter = Filter::allowing(vec![Rule::of(&["read"], Action::ALLOW)]);
        let parts = [(1, 0), (2, 3)].map(|(architecture, number)| {
            (architecture, Calls::new(&filter, &BTreeMap::from([("read", number), ("last", 9)])))
        });
        let program = of(parts.into_iter());
        for (architecture, number, expected) in [
            (1, 0, Action::ALLOW),
            (2, 0, Action::REFUSE),
            (2, 3, Action::ALLOW),
            (3, 3, Action::KILL_PROCESS),
        ] {
            assert_eq!(verdict(&program, architecture, number, &[]), expected, "{architecture} {number}");
        }
    }

    #[test]
    fn arguments_are_compared_in_full() {
        const BIG: u64 = 0x5_0000_0005;
        let around = [0, 5, BIG - 1, BIG, BIG + 1, 0x4_ffff_ffff, 0x6_0000_0000, u64::MAX];
        for argument in around {
            for (test, expected) in [
                (Test::Equal, argument == BIG),
                (Test::NotEqual, argument != BIG),
                (Test::Less, argument < BIG),
                (Test::AtMost, argument <= BIG),
                (Test::AtLeast, argument >= BIG),
                (Test::Greater, argument > BIG),
            ] {
                let filter = Filter::allowing(vec![Rule::of(&["clone"], Action::ALLOW).when(2, test, BIG)]);
                let allowed = decide(&filter, "clone", &[1, 2, argument]) == Action::ALLOW;
                assert_eq!(allowed, expected, "{argument:#x} {test:?}");
            }
        }
    }

    #[test]
    fn masks_leave_the_other_bits_out() {
        let rule = Rule::of(&["clone"], Action::ALLOW).when(0, Test::Masked(0xf_0000_00f0), 0x1_0000_0010);
        let filter = Filter::allowing(vec![rule]);
        for (argument, expected) in [
            (0x1_0000_0010, Action::ALLOW),
            (0xf1_1111_111f, Action::ALLOW),
            (0x1_0000_0020, Action::REFUSE),
            (0x10, Action::REFUSE),
        ] {
            assert_eq!(decide(&filter, "clone", &[argument]), expected, "{argument:#x}");
        }
    }

    #[test]
    fn first_rule_whose_conditions_all_hold_decides() {
        let filter = Filter::allowing(vec![
            Rule::of(&["socket"], Action::ALLOW),
            Rule::of(&["socket"], Action::fail(22)).when(0, Test::Equal, 16).when(2, Test::Equal, 9),
            Rule::of(&["socket"], Action::TRAP).when(0, Test::Equal, 16),
            Rule::of(&["socket"], Action::LOG).when(0, Test::Equal, 16),
        ]);
        for (arguments, expected) in
            [([16, 0, 9], Action::fail(22)), ([16, 0, 8], Action::TRAP), ([2, 0, 9], Action::ALLOW)]
        {
            assert_eq!(decide(&filter, "socket", &arguments), expected, "{arguments:?}");
        }
    }

    #[test]
    fn long_rules_of_many_calls_are_jumped_over() {
        let rule = |value| {
            let any = Rule::of(&["read", "write", "open", "clone", "socket"], Action::ALLOW);
            (0..6).fold(any, |rule, argument| rule.when(argument, Test::Greater, value))
        };
        let filter =
            Filter::allowing((0..20).map(rule).rev().chain([Rule::of(&["seccomp"], Action::LOG)]).collect());
        assert_eq!(decide(&filter, "socket", &[1; 6]), Action::ALLOW);
        assert_eq!(decide(&filter, "socket", &[0; 6]), Action::REFUSE);
        assert_eq!(decide(&filter, "seccomp", &[]), Action::LOG);
    }
}
