//! Command lines as getopt_long(3) of the GNU C library reads them, for the names of other programs.
//!
//! Options and operands may be mixed unless the program forbids it, long options may be shortened as long as it is
//! clear which one is meant, `--` ends the options, and mistakes are told in the library's words, which callers look
//! for.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One option.
#[derive(Debug)]
pub(super) struct Opt<T> {
    /// What it means; the same for all its spellings.
    pub(super) is: T,
    /// Without its dashes; empty for none.
    pub(super) long: &'static str,
    /// Its letter.
    pub(super) short: Option<u8>,
    /// Whether an argument follows.
    pub(super) takes_argument: bool,
}

/// A part of the command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word<T> {
    /// An option and its argument, empty for one that takes none.
    Option(T, OsString),
    /// Anything else.
    Operand(OsString),
}

/// Reads a command line part by part. The error is a whole line for the user, and the last that is read.
pub(super) struct Reader<'a, T, I> {
    program: &'a str,
    options: &'a [Opt<T>],
    words: I,
    /// Letters that are left of a word such as `-6c`.
    letters: Vec<u8>,
    options_ended: bool,
    operands_end_options: bool,
}

impl<'a, T: Copy + PartialEq, I: Iterator<Item = OsString>> Reader<'a, T, I> {
    /// Reads `words`, which begin after the program's name.
    pub(super) fn new(program: &'a str, options: &'a [Opt<T>], words: I) -> Self {
        Self {
            program,
            options,
            words,
            letters: Vec::new(),
            options_ended: false,
            operands_end_options: false,
        }
    }

    /// The first operand ends the options, as with POSIXLY_CORRECT.
    pub(super) fn operands_end_options(mut self) -> Self {
        self.operands_end_options = true;
        self
    }

    fn long(&mut self, word: &[u8]) -> Result<Word<T>, String> {
        let (name, argument) = match word.iter().position(|byte| *byte == b'=') {
            Some(at) => (&word[..at], Some(&word[at + 1..])),
            None => (word, None),
        };
        let shown = String::from_utf8_lossy(name);
        let option = self.meant(name, &shown)?;
        let (program, long) = (self.program, option.long);
        match argument {
            Some(_) if !option.takes_argument => {
                Err(format!("{program}: option '--{long}' doesn't allow an argument"))
            }
            Some(argument) => Ok(Word::Option(option.is, OsStr::from_bytes(argument).to_owned())),
            None if !option.takes_argument => Ok(Word::Option(option.is, OsString::new())),
            None => match self.words.next() {
                Some(argument) => Ok(Word::Option(option.is, argument)),
                None => Err(format!("{program}: option '--{long}' requires an argument")),
            },
        }
    }

    /// The option that `name` means; a whole name wins over longer ones that begin with it.
    fn meant(&self, name: &[u8], shown: &str) -> Result<&'a Opt<T>, String> {
        let candidates: Vec<&Opt<T>> = self
            .options
            .iter()
            .filter(|option| !option.long.is_empty() && option.long.as_bytes().starts_with(name))
            .collect();
        if let Some(exact) = candidates.iter().find(|option| option.long.len() == name.len()) {
            return Ok(exact);
        }
        match candidates[..] {
            [] => Err(format!("{}: unrecognized option '--{shown}'", self.program)),
            [first, ref others @ ..] if others.iter().all(|other| other.is == first.is) => Ok(first),
            _ => {
                let names: String = candidates.iter().map(|option| format!(" '--{}'", option.long)).collect();
                Err(format!("{}: option '--{shown}' is ambiguous; possibilities:{names}", self.program))
            }
        }
    }

    fn short(&mut self, letter: u8) -> Result<Word<T>, String> {
        let (program, shown) = (self.program, char::from(letter));
        let Some(option) = self.options.iter().find(|option| option.short == Some(letter)) else {
            return Err(format!("{program}: invalid option -- '{shown}'"));
        };
        if !option.takes_argument {
            return Ok(Word::Option(option.is, OsString::new()));
        }
        let attached = std::mem::take(&mut self.letters);
        if !attached.is_empty() {
            return Ok(Word::Option(option.is, OsString::from_vec(attached)));
        }
        match self.words.next() {
            Some(argument) => Ok(Word::Option(option.is, argument)),
            None => Err(format!("{program}: option requires an argument -- '{shown}'")),
        }
    }
}

impl<T: Copy + PartialEq, I: Iterator<Item = OsString>> Iterator for Reader<'_, T, I> {
    type Item = Result<Word<T>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.letters.is_empty() {
            let letter = self.letters.remove(0);
            return Some(self.short(letter));
        }
        let word = self.words.next()?;
        match word.as_bytes() {
            _ if self.options_ended => Some(Ok(Word::Operand(word))),
            b"--" => {
                self.options_ended = true;
                self.next()
            }
            [b'-', b'-', long @ ..] => Some(self.long(long)),
            [b'-', letter, rest @ ..] => {
                self.letters = rest.to_vec();
                Some(self.short(*letter))
            }
            _ => {
                self.options_ended = self.operands_end_options;
                Some(Ok(Word::Operand(word)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Is {
        Mtu,
        Configure,
        Ipv6,
        Sandbox,
    }

    const OPTIONS: &[Opt<Is>] = &[
        Opt { is: Is::Mtu, long: "mtu", short: Some(b'm'), takes_argument: true },
        Opt { is: Is::Configure, long: "configure", short: Some(b'c'), takes_argument: false },
        Opt { is: Is::Ipv6, long: "enable-ipv6", short: Some(b'6'), takes_argument: false },
        Opt { is: Is::Sandbox, long: "enable-sandbox", short: None, takes_argument: false },
        Opt { is: Is::Sandbox, long: "create-sandbox", short: None, takes_argument: false },
        Opt { is: Is::Sandbox, long: "create-sandboxes", short: None, takes_argument: false },
    ];

    #[test]
    fn options_and_operands_mix() {
        use Word::{Operand, Option};
        let expected = [
            Operand("7".into()),
            Option(Is::Mtu, "9".into()),
            Option(Is::Configure, "".into()),
            Operand("tap0".into()),
            Operand("-".into()),
        ];
        for line in ["7 -m 9 -c tap0 -", "7 -m9 -c tap0 -", "7 --mtu=9 --conf tap0 -", "7 --m 9 --c= tap0 -"]
        {
            let line = line.replace("--c=", "--configure");
            assert_eq!(read(&line), Ok(expected.iter().map(copy).collect()), "{line}");
        }
    }

    #[test]
    fn letters_join_and_dashes_end_options() {
        use Word::{Operand, Option};
        assert_eq!(
            read("-6cm5 -- -c --mtu"),
            Ok(vec![
                Option(Is::Ipv6, "".into()),
                Option(Is::Configure, "".into()),
                Option(Is::Mtu, "5".into()),
                Operand("-c".into()),
                Operand("--mtu".into()),
            ])
        );
    }

    #[test]
    fn abbreviations_of_one_meaning_are_clear() {
        for line in ["--cr", "--create-sandbox", "--enable-s"] {
            assert_eq!(read(line), Ok(vec![Word::Option(Is::Sandbox, "".into())]), "{line}");
        }
    }

    #[test]
    fn mistakes_are_told_in_the_librarys_words() {
        for (line, told) in [
            ("--bogus", "p: unrecognized option '--bogus'"),
            ("--mtux=3", "p: unrecognized option '--mtux'"),
            ("-Z", "p: invalid option -- 'Z'"),
            ("--mtu", "p: option '--mtu' requires an argument"),
            ("--mt", "p: option '--mtu' requires an argument"),
            ("-cm", "p: option requires an argument -- 'm'"),
            ("--configure=1", "p: option '--configure' doesn't allow an argument"),
            ("--en", "p: option '--en' is ambiguous; possibilities: '--enable-ipv6' '--enable-sandbox'"),
        ] {
            assert_eq!(read(line), Err(told.to_owned()), "{line}");
        }
    }

    #[test]
    fn an_argument_may_be_empty_or_look_like_an_option() {
        assert_eq!(read("--mtu="), Ok(vec![Word::Option(Is::Mtu, "".into())]));
        assert_eq!(read("-m -c"), Ok(vec![Word::Option(Is::Mtu, "-c".into())]));
    }

    #[test]
    fn the_first_operand_ends_the_options_where_the_program_says_so() {
        let words = "-c sh -c --mtu".split(' ').map(OsString::from);
        let read: Vec<Word<Is>> = Reader::new("p", OPTIONS, words)
            .operands_end_options()
            .collect::<Result<_, _>>()
            .expect("the rest is no option");
        let operands = ["sh", "-c", "--mtu"].map(|word| Word::Operand(word.into()));
        assert_eq!(read[0], Word::Option(Is::Configure, "".into()));
        assert_eq!(read[1..], operands);
    }

    fn read(line: &str) -> Result<Vec<Word<Is>>, String> {
        Reader::new("p", OPTIONS, line.split(' ').map(OsString::from)).collect()
    }

    fn copy(word: &Word<Is>) -> Word<Is> {
        match word {
            Word::Option(is, argument) => Word::Option(*is, argument.clone()),
            Word::Operand(operand) => Word::Operand(operand.clone()),
        }
    }
}
