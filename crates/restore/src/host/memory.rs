//! Memory of special kinds that this host must have: huge pages set aside (hugetlb), nodes.

use std::collections::BTreeMap;

use rewake_image::Image;
use rewake_image::records::{AddressSpace, Vma, vma::Backing};

use crate::error::RestoreError;

/// `MPOL_F_RELATIVE_NODES`: the nodes are counted among those allowed.
const RELATIVE_NODES: u32 = 1 << 14;

/// Refuses, by name, what this host cannot give.
///
/// # Errors
/// Huge pages or nodes that are not there.
pub fn check_memory(image: &Image) -> Result<(), RestoreError> {
    let unsupported = |(object, reason)| RestoreError::Unsupported { pid: image.root().pid, object, reason };
    check_huge_pages(image).map_err(unsupported)?;
    let vmas = image.memories().flat_map(|memory| &memory.vmas);
    let lists = ["has_memory", "online"].map(|list| format!("/sys/devices/system/node/{list}"));
    let nodes = lists.iter().find_map(|list| std::fs::read_to_string(list).ok());
    check_nodes(vmas, &nodes.map_or_else(|| vec![0], |nodes| parse_list(&nodes))).map_err(unsupported)
}

/// What is missing, and why that matters.
type Lack = (String, String);

fn check_huge_pages(image: &Image) -> Result<(), Lack> {
    for (shift, wanted) in huge_pages(image) {
        let size = (1u64 << shift) / 1024;
        let folder = format!("/sys/kernel/mm/hugepages/hugepages-{size}kB");
        let number = |file: &str| {
            let text = std::fs::read_to_string(format!("{folder}/{file}")).ok();
            text.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let free = number("free_hugepages").saturating_sub(number("resv_hugepages"));
        let more = number("nr_overcommit_hugepages").saturating_sub(number("surplus_hugepages"));
        if free + more < wanted {
            let object = format!("huge pages of {size} KiB");
            let reason = format!(
                "the program needs {wanted} and this host has {} free; set more aside: write a larger number to {folder}/nr_hugepages",
                free + more
            );
            return Err((object, reason));
        }
    }
    Ok(())
}

/// How many huge pages mapping and filling takes, by power of two of their size. Files of hugetlbfs have theirs.
fn huge_pages<'a>(image: &'a Image) -> BTreeMap<u32, u64> {
    let mut wanted: BTreeMap<u32, u64> = BTreeMap::new();
    let mut add = |shift: u32, bytes: u64| {
        if shift > 0 {
            *wanted.entry(shift).or_default() += bytes.div_ceil(1 << shift);
        }
    };
    let with_memory = |memory: &'a AddressSpace| memory.vmas.iter().map(move |vma| (memory, vma));
    for (memory, vma) in image.memories().flat_map(with_memory) {
        let filled = || {
            let inside =
                memory.pages.iter().filter(|page| vma.start <= page.address && page.address < vma.end);
            inside.map(|page| page.length).sum()
        };
        match vma.backing() {
            _ if vma.shared || vma.huge_page_shift == 0 => {}
            Backing::Anonymous | Backing::File if !vma.no_reserve => add(vma.huge_page_shift, vma.length()),
            _ => add(vma.huge_page_shift, filled()),
        }
    }
    for object in &image.shared_memory {
        add(object.huge_page_shift, object.size);
    }
    wanted
}

fn check_nodes<'a>(vmas: impl Iterator<Item = &'a Vma>, here: &[usize]) -> Result<(), Lack> {
    for vma in vmas.filter(|vma| vma.memory_policy & RELATIVE_NODES == 0) {
        let nodes = vma.memory_policy_nodes.iter().zip(0..);
        let nodes = nodes.flat_map(|(byte, at)| {
            (0..8).filter(move |bit| byte >> bit & 1 != 0).map(move |bit| at * 8 + bit)
        });
        if let Some(node) = nodes.into_iter().find(|node| !here.contains(node)) {
            let object = format!("memory policy of mapping {:#x}-{:#x}", vma.start, vma.end);
            return Err((object, format!("it names node {node}, which this host does not have")));
        }
    }
    Ok(())
}

/// Numbers of a list such as `0-2,4`.
fn parse_list(text: &str) -> Vec<usize> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse(), last.parse::<usize>()) {
            numbers.extend(first..=last);
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use rewake_image::records::{Extent, SharedMemory};
    use rewake_image::sample;

    use super::*;

    #[test]
    fn lists_of_nodes_are_read() {
        assert_eq!(parse_list("0-2,4\n"), [0, 1, 2, 4]);
        assert_eq!(parse_list("0\n"), [0]);
        assert!(parse_list("\n").is_empty());
    }

    #[test]
    fn a_node_that_is_not_here_is_named() {
        let vma =
            |nodes: &[u8]| Vma { memory_policy: 2, memory_policy_nodes: nodes.to_vec(), ..Vma::default() };
        assert_eq!(check_nodes([vma(&[1])].iter(), &[0]), Ok(()));
        let (_, reason) = check_nodes([vma(&[1]), vma(&[0, 2])].iter(), &[0]).expect_err("node 9");
        assert!(reason.contains("node 9"), "{reason}");
        let relative = Vma { memory_policy: 2 | RELATIVE_NODES, ..vma(&[0, 2]) };
        assert_eq!(check_nodes([relative].iter(), &[0]), Ok(()));
    }

    #[test]
    fn huge_pages_are_counted_where_they_are_taken() {
        let mut image = sample::image();
        let memory = image.processes[0].memory.as_mut().expect("memory");
        let huge = |start: u64, no_reserve| Vma {
            start: start << 21,
            end: (start + 4) << 21,
            huge_page_shift: 21,
            no_reserve,
            ..Vma::default()
        };
        memory.vmas.extend([huge(1 << 20, false), huge(1 << 21, true)]);
        memory.pages = vec![Extent { address: 1 << 42, length: 2 << 21, stream_offset: 0 }];
        image.shared_memory.push(SharedMemory { huge_page_shift: 21, size: 1, ..SharedMemory::default() });
        assert_eq!(huge_pages(&image), BTreeMap::from([(21, 4 + 2 + 1)]));
    }
}
