//! Process groups whose leaders are gone or moved on, and the rounds in which ghosts end.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{CannotBeMade, Fate, Group, Node};

/// Nobody's id.
const OUTSIDE: i32 = i32::MIN;

/// Groups whose leaders are gone: the first of their members makes one for the time that the others need to join.
pub(super) fn add_leaders(nodes: &mut Vec<Node<'_>>) {
    let known: BTreeSet<i32> = nodes.iter().map(|node| node.id).collect();
    let mut missing: BTreeMap<i32, i32> = BTreeMap::new();
    for node in nodes.iter() {
        if let Group::Join(group) = node.group
            && !known.contains(&group)
        {
            missing.entry(group).or_insert(node.id);
        }
    }
    let leader = |(group, member)| Node { group: Group::Own, ..Node::ghost(group, member) };
    nodes.extend(missing.into_iter().map(leader));
}

/// Those who led a group that others are in still, and joined another one since: they lead theirs until the others have joined.
pub(super) fn take_turns(nodes: &mut [Node<'_>]) -> Result<(), CannotBeMade> {
    let joined = |node: &Node<'_>| match node.group {
        Group::Join(group) => Some(group),
        Group::Outside => Some(OUTSIDE),
        Group::Own | Group::Stay => None,
    };
    let mut into: HashMap<i32, Vec<i32>> = HashMap::new();
    for node in nodes.iter() {
        if let Some(group) = joined(node) {
            into.entry(group).or_default().push(node.id);
        }
    }
    let moved = |node: &&Node<'_>| joined(node).is_some_and(|group| group != node.id);
    let mut turns: BTreeMap<i32, u32> = nodes.iter().filter(moved).map(|node| (node.id, 0)).collect();
    // Each comes after all who join its group; more turns than nodes there cannot be.
    for _ in 0..=nodes.len() {
        let after = |id: &i32| {
            into.get(id).and_then(|who| who.iter().map(|one| turns.get(one).map_or(1, |turn| turn + 1)).max())
        };
        let next: BTreeMap<i32, u32> = turns.keys().map(|id| (*id, after(id).unwrap_or(0))).collect();
        if next == turns {
            for node in nodes.iter_mut() {
                node.turn = turns.get(&node.id).copied().unwrap_or(0);
            }
            return Ok(());
        }
        turns = next;
    }
    let reason = "processes lead each other's process groups".to_owned();
    let pid = nodes.first().map_or(0, |root| root.id);
    Err(CannotBeMade { pid, object: "process groups".to_owned(), reason })
}

/// Heirs further up first: while they are the only ones, what is left behind anywhere below goes to them. Nobody ends before those that
/// it waits for.
pub(super) fn add_rounds(nodes: &mut [Node<'_>], depth: &HashMap<i32, u32>) {
    let depth_of = |heir: i32| depth.get(&heir).copied().unwrap_or(0);
    let depths: BTreeSet<u32> = nodes.iter().filter_map(|node| node.heir).map(depth_of).collect();
    let rounds: HashMap<u32, u32> = depths.into_iter().zip(0..).collect();
    let mut at_least: HashMap<i32, u32> = HashMap::new();
    // Makers come before those they make.
    for node in nodes.iter_mut().rev().filter(|node| node.fate == Fate::Ghost) {
        let own = node.heir.and_then(|heir| rounds.get(&depth_of(heir))).copied().unwrap_or(0);
        node.round = own.max(at_least.get(&node.id).copied().unwrap_or(0));
        if let Some(maker) = node.maker {
            let least = at_least.entry(maker).or_insert(0);
            *least = node.round.max(*least);
        }
    }
}
