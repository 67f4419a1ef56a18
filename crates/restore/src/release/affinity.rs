//! Processors that this host does not let the program use: the kernel leaves them out, and somebody should know.

use rewake_image::records::Process;
use rewake_linux::attributes;

/// One line about the threads that may not run where they could, if there are any; `outer` is a thread's id out here.
pub fn note(process: &Process, outer: impl Fn(i32) -> i32) -> Option<String> {
    let threads = process.threads.iter().filter(|thread| !thread.exited && !thread.affinity.is_empty());
    let moved: Vec<i32> = threads
        .filter(|thread| {
            attributes::affinity(outer(thread.tid)).is_ok_and(|now| list(&now) != list(&thread.affinity))
        })
        .map(|thread| thread.tid)
        .collect();
    let first = process.threads.iter().find(|thread| Some(&thread.tid) == moved.first())?;
    let now = attributes::affinity(outer(first.tid)).ok()?;
    let others = match moved.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "thread {}{others} may run on processors {} here, was {}",
        first.tid,
        list(&now),
        list(&first.affinity)
    ))
}

/// `0-3,8`: the numbers of the bits that are set.
fn list(mask: &[u8]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for cpu in (0..mask.len() * 8).filter(|cpu| mask[cpu / 8] & 1 << (cpu % 8) != 0) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let name = |(first, last): (usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.into_iter().map(name).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::list;

    #[test]
    fn masks_of_any_length_are_lists() {
        assert_eq!(list(&[0b1000_1111, 1]), "0-3,7-8");
        assert_eq!(list(&[1, 0, 0]), list(&[1]));
        assert_eq!(list(&[]), "");
    }
}
