//! Memory of special kinds that this host must have: huge pages set aside (hugetlb), nodes, rings of asynchronous I/O.

use std::collections::BTreeMap;

use rewake_image::Image;
use rewake_image::records::{AddressSpace, FileContent, Vma, file_content::Kind, vma::Backing};

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
    for process in &image.processes {
        super::aio::check(&process.aio_contexts).map_err(unsupported)?;
    }
    let vmas = image.memories().flat_map(|memory| &memory.vmas);
    let lists = ["has_memory", "online"].map(|list| format!("/sys/devices/system/node/{list}"));
    let nodes = lists.iter().find_map(|list| std::fs::read_to_string(list).ok());
    check_nodes(vmas, &nodes.map_or_else(|| vec![0], |nodes| parse_list(&nodes))).map_err(unsupported)
}

/// What is missing, and why that matters.
pub(super) type Lack = (String, String);

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

/// How many huge pages mapping and filling takes, by power of two of their size. Files of hugetlbfs that are still there have theirs.
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
    for content in image.file_contents.iter().filter(|content| content.kind() != Kind::Named) {
        add(content.huge_page_shift, taken_by_file(image, content));
    }
    wanted
}

/// Bytes of a file that hold something or are set aside by a mapping of it.
fn taken_by_file(image: &Image, content: &FileContent) -> u64 {
    let of_file = |vma: &&Vma| {
        let file = usize::try_from(vma.object).ok().and_then(|object| image.mapped_files.get(object));
        vma.backing() == Backing::File && file.is_some_and(|file| file.content == Some(content.id))
    };
    let vmas = image.memories().flat_map(|memory| &memory.vmas);
    let reserved = vmas.filter(|vma| vma.shared && !vma.no_reserve).filter(of_file);
    let mut parts: Vec<(u64, u64)> = reserved.map(|vma| (vma.offset, vma.offset + vma.length())).collect();
    parts.extend(content.pages.iter().map(|extent| (extent.address, extent.address + extent.length)));
    parts.sort_unstable();
    let mut end = 0;
    let new = parts.into_iter().map(|(from, to)| {
        let new = to.saturating_sub(from.max(end));
        end = end.max(to);
        new
    });
    new.sum()
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
pub(super) fn parse_list(text: &str) -> Vec<usize> {
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
    use rewake_image::records::{Extent, MappedFile, SharedMemory};
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
        // A memfd of four pages, two of which hold something, one of these and one more mapped.
        let id = 7;
        let object = u32::try_from(image.mapped_files.len()).expect("few");
        image.mapped_files.push(MappedFile { content: Some(id), ..MappedFile::default() });
        let extent = Extent { address: 0, length: 2 << 21, stream_offset: 0 };
        let kind = Kind::Memfd.into();
        let content =
            FileContent { id, kind, huge_page_shift: 21, pages: vec![extent], ..FileContent::default() };
        image.file_contents.push(content);
        let mapping = Vma { start: 0, end: 2 << 21, offset: 1 << 21, object, shared: true, ..huge(0, false) };
        let mapping = Vma { backing: Backing::File.into(), ..mapping };
        image.processes[0].memory.as_mut().expect("memory").vmas.push(mapping);
        assert_eq!(huge_pages(&image), BTreeMap::from([(21, 4 + 2 + 1 + 3)]));
    }
}
