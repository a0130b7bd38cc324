//! The rules that change a payload in place: `omit`, `rename` and `set`.
//!
//! The rules of one kind don't see one another's effect, so that their order says nothing: JSON gives the members
//! of an object none.

use super::TransformError;
use super::pointer::Pointer;
use super::tree::Node;

/// A value that moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rename {
    pub(super) from: Pointer,
    pub(super) to: Pointer,
}

/// A value that is put in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) at: Pointer,
    /// JSON text.
    pub(super) value: Box<str>,
}

/// Takes out what `pointers` lead to, as far as it is there.
pub(super) fn omit(root: &mut Node<'_>, pointers: &[Pointer]) -> Result<(), TransformError> {
    for pointer in pointers {
        root.take(pointer)?;
    }
    root.sweep();
    Ok(())
}

/// Moves what is there: everything is taken out before anything is put in, so that two values can change places.
pub(super) fn rename<'a>(root: &mut Node<'a>, renames: &'a [Rename]) -> Result<(), TransformError> {
    if renames.is_empty() {
        return Ok(());
    }
    // Inner values first: `/data/id` must not leave with `/data`.
    let mut innermost_first: Vec<usize> = (0..renames.len()).collect();
    innermost_first.sort_by_key(|nth| std::cmp::Reverse(renames[*nth].from.tokens().len()));
    let mut taken: Vec<_> = renames.iter().map(|_| None).collect();
    for nth in innermost_first {
        taken[nth] = root.take(&renames[nth].from)?;
    }
    for (rename, taken) in renames.iter().zip(taken) {
        if let Some(taken) = taken {
            let freed = rename.from.is_sibling(&rename.to).then_some(taken.place);
            root.put(&rename.to, taken.value, freed)?;
        }
    }
    root.sweep();
    Ok(())
}

/// Puts constant values in, over what is there.
pub(super) fn set<'a>(root: &mut Node<'a>, sets: &'a [Set]) -> Result<(), TransformError> {
    sets.iter().try_for_each(|set| root.put(&set.at, Node::Raw(&set.value), None))
}

/// Why a pointer can't stand where it does.
pub(super) enum Conflict<'a> {
    /// What `from` leads to is gone by then.
    Omitted(&'a Rename, &'a Pointer),
    /// `to` is `from`, or lies in it.
    Circular(&'a Rename),
    /// Two values are put to the same place, or one into the other: the pointer to the inner and to the outer one.
    Nested(&'a Pointer, &'a Pointer),
}

/// The first of `renames` that can't mean anything.
pub(super) fn rename_conflict<'a>(omit: &'a [Pointer], renames: &'a [Rename]) -> Option<Conflict<'a>> {
    let conflict = |rename: &'a Rename| {
        if rename.from.covers(&rename.to) {
            return Some(Conflict::Circular(rename));
        }
        // Behind an element that is gone another one may have taken its place.
        let mut omit = omit.iter().filter(|pointer| !pointer.may_be_element());
        omit.find(|pointer| pointer.covers(&rename.from)).map(|pointer| Conflict::Omitted(rename, pointer))
    };
    renames.iter().find_map(conflict).or_else(|| nested(renames.iter().map(|rename| &rename.to)))
}

/// The first two of `targets` of which one lies in the other, whichever would be put first.
pub(super) fn nested<'a>(targets: impl Iterator<Item = &'a Pointer> + Clone) -> Option<Conflict<'a>> {
    targets.clone().enumerate().find_map(|(nth, inner)| {
        let covers_it = |(other_nth, outer): &(usize, &'a Pointer)| {
            let is_same = *outer == inner;
            // Two values may well be appended to one array.
            *other_nth != nth && outer.covers(inner) && !(is_same && inner.may_append())
        };
        let (_, outer) = targets.clone().enumerate().find(covers_it)?;
        Some(Conflict::Nested(inner, outer))
    })
}
