//! The call that another thread of the process is in, as the kernel tells it in `/proc`.
//!
//! A thread of the same process needs no right for it. What is read may be over by the time it is used;
//! the signal's handler compares.

use rustix::fs::{Mode, OFlags, open};
use rustix::io::read;

use crate::foreign::order::Seen;

/// The state of a thread.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// In a system call.
    In(Seen),
    /// In none: it runs, or could run.
    Running,
    /// There is no such thread, or the system does not tell.
    Nothing,
}

/// Looks at a thread of this process.
pub(crate) fn look(tid: u32) -> Sight {
    look_in(&format!("/proc/self/task/{tid}/syscall"))
}

/// [`look`], at the file with this name.
fn look_in(path: &str) -> Sight {
    let mut text = [0; 256];
    let length = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|file| read(&file, &mut text));
    let text = length
        .ok()
        .and_then(|length| std::str::from_utf8(&text[..length]).ok());
    text.map_or(Sight::Nothing, parse)
}

/// True if the kernel tells: it does of the calling thread, which is in a `read` at that moment.
pub(crate) fn works() -> bool {
    matches!(
        look_in("/proc/thread-self/syscall"),
        Sight::In(seen) if libc::c_long::try_from(seen[0]) == Ok(libc::SYS_read)
    )
}

/// A line of the file: `running`; or the number, the arguments, the stack pointer and the program counter;
/// or -1 and the last two, for a thread that is blocked outside of a call.
fn parse(line: &str) -> Sight {
    let mut words = line.split_ascii_whitespace();
    let Some(Ok(number)) = words.next().map(str::parse::<u64>) else {
        return Sight::Running;
    };
    let mut seen = [number; 9];
    for place in &mut seen[1..] {
        let word = words.next().and_then(|word| word.strip_prefix("0x"));
        match word.map(|word| u64::from_str_radix(word, 16)) {
            Some(Ok(value)) => *place = value,
            _ => return Sight::Nothing,
        }
    }
    Sight::In(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_is_understood() {
        let line = "45 0x7 0x7ffd 0x40 0x0 0x0 0x0 0x7ffc10 0xffffffffffff00ad\n";
        let seen = [
            45,
            7,
            0x7ffd,
            0x40,
            0,
            0,
            0,
            0x7f_fc10,
            0xffff_ffff_ffff_00ad,
        ];
        assert_eq!(parse(line), Sight::In(seen));
        assert_eq!(parse("running\n"), Sight::Running);
        assert_eq!(parse("-1 0x7ffc10 0xad\n"), Sight::Running);
        assert_eq!(parse("45 0x7 rubbish"), Sight::Nothing);
        assert_eq!(parse(""), Sight::Running);
    }

    #[test]
    fn without_the_file_nothing_is_seen() {
        assert_eq!(look_in("/proc/self/there-is-no-such-file"), Sight::Nothing);
        assert_eq!(look(u32::MAX), Sight::Nothing);
    }

    #[test]
    fn this_system_tells_the_call_of_a_thread() {
        assert!(works());
    }
}
