//! Who wants this event: from tenant and type to endpoints, without asking each of them.
//!
//! A tree of type parts for every tenant that has endpoints of its own, and one for the endpoints of all tenants. A
//! search walks down the parts of the type and takes whole lists on its way, so it costs the parts of one name (each
//! one look-up in a hash map) and the endpoints that match, however many others there are.

use std::collections::HashMap;

use super::event_types::EventTypeFilter;

/// One endpoint's wishes.
#[derive(Debug, Clone, Copy)]
pub struct Subscription<'a, Id> {
    /// The endpoint. One subscription each.
    pub id: &'a Id,
    /// The one tenant whose events it gets; every tenant's where `None`.
    pub tenant: Option<&'a str>,
    /// It gets what any of these takes, once.
    pub event_types: &'a [EventTypeFilter],
}

/// An index of the active endpoints. Made anew when one of them changes.
#[derive(Debug, Clone)]
pub struct Subscriptions<Id> {
    every_tenant: Node<Id>,
    tenants: HashMap<Box<str>, Node<Id>>,
}

/// The place of one name, e.g. `order.line`, in a tree of names.
#[derive(Debug, Clone)]
struct Node<Id> {
    /// Who wants the type of this name.
    exact: Vec<Id>,
    /// Who wants every type below it.
    below: Vec<Id>,
    children: HashMap<Box<str>, Self>,
}

impl<Id> Default for Node<Id> {
    fn default() -> Self {
        Self { exact: Vec::new(), below: Vec::new(), children: HashMap::new() }
    }
}

impl<Id> Default for Subscriptions<Id> {
    fn default() -> Self {
        Self { every_tenant: Node::default(), tenants: HashMap::new() }
    }
}

impl<Id: Clone + PartialEq> Subscriptions<Id> {
    /// An index of these.
    pub fn new<'a>(subscriptions: impl IntoIterator<Item = Subscription<'a, Id>>) -> Self
    where
        Id: 'a,
    {
        let mut index = Self::default();
        for subscription in subscriptions {
            let root = match subscription.tenant {
                None => &mut index.every_tenant,
                Some(tenant) => index.tenants.entry(tenant.into()).or_default(),
            };
            // The wide ones first: each narrower one then meets the wide one on its way down and is left out.
            let mut filters: Vec<_> = subscription.event_types.iter().collect();
            filters.sort_by_key(|filter| match filter {
                EventTypeFilter::Any => (0, 0),
                EventTypeFilter::Prefix(prefix) => (1, prefix.len()),
                EventTypeFilter::Exact(_) => (2, 0),
            });
            filters.into_iter().for_each(|filter| root.insert(subscription.id, filter));
        }
        index
    }
}

impl<Id> Subscriptions<Id> {
    /// The endpoints that want this event, each once, in no particular order.
    pub fn matching<'a>(&'a self, tenant: &str, event_type: &'a str) -> impl Iterator<Item = &'a Id> {
        self.visited(tenant, event_type).flatten()
    }

    /// The list of every node that a search looks at.
    fn visited<'a>(&'a self, tenant: &str, event_type: &'a str) -> impl Iterator<Item = &'a [Id]> {
        let own = self.tenants.get(tenant).map(|root| root.search(event_type));
        self.every_tenant.search(event_type).chain(own.into_iter().flatten())
    }
}

impl<Id> Node<Id> {
    /// Walks down `event_type` from here, the root: at each name on the way those who want all below it, at the last
    /// one those who want just it.
    fn search<'a>(&'a self, event_type: &'a str) -> impl Iterator<Item = &'a [Id]> {
        let mut next = Some((self, Some(event_type)));
        std::iter::from_fn(move || {
            let (node, rest) = next.take()?;
            let Some(rest) = rest else { return Some(node.exact.as_slice()) };
            let (part, rest) = rest.split_once('.').map_or((rest, None), |(part, rest)| (part, Some(rest)));
            next = node.children.get(part).map(|child| (child, rest));
            Some(node.below.as_slice())
        })
    }
}

impl<Id: Clone + PartialEq> Node<Id> {
    /// Puts an endpoint where `filter` says, unless a wider filter of its own has put it on the way there.
    fn insert(&mut self, id: &Id, filter: &EventTypeFilter) {
        let path = match filter {
            EventTypeFilter::Any => None,
            EventTypeFilter::Prefix(path) | EventTypeFilter::Exact(path) => Some(path),
        };
        let mut node = self;
        for part in path.into_iter().flat_map(|path| path.split('.')) {
            // One endpoint's filters come one after another, so it would be the last one there.
            if node.below.last() == Some(id) {
                return;
            }
            node = node.children.entry(part.into()).or_default();
        }
        let list =
            if matches!(filter, EventTypeFilter::Exact(_)) { &mut node.exact } else { &mut node.below };
        if list.last() != Some(id) {
            list.push(id.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Wishes = (Option<String>, Vec<EventTypeFilter>);

    fn index(wishes: &[Wishes]) -> Subscriptions<usize> {
        let ids: Vec<_> = (0..wishes.len()).collect();
        Subscriptions::new(ids.iter().zip(wishes).map(|(id, (tenant, event_types))| Subscription {
            id,
            tenant: tenant.as_deref(),
            event_types,
        }))
    }

    fn sorted<'a>(ids: impl Iterator<Item = &'a usize>) -> Vec<usize> {
        let mut ids: Vec<_> = ids.copied().collect();
        ids.sort_unstable();
        ids
    }

    fn filters(texts: &[&str]) -> Vec<EventTypeFilter> {
        texts.iter().map(|text| EventTypeFilter::parse(text).expect("good")).collect()
    }

    #[test]
    fn an_endpoint_gets_what_it_wants_once() {
        let wishes = [
            (None, filters(&["*"])),
            (Some("acme".to_owned()), filters(&["order.created", "order.*", "order.line.*", "*", "order.*"])),
            (Some("acme".to_owned()), filters(&["order.created", "order.created"])),
            (Some("globex".to_owned()), filters(&["order.*"])),
            (None, filters(&["order.line.*", "order"])),
        ];
        let index = index(&wishes);
        assert_eq!(sorted(index.matching("acme", "order.created")), [0, 1, 2]);
        assert_eq!(sorted(index.matching("acme", "order.line.added")), [0, 1, 4]);
        assert_eq!(sorted(index.matching("globex", "order.created")), [0, 3]);
        assert_eq!(sorted(index.matching("initech", "order")), [0, 4]);
        assert_eq!(sorted(Subscriptions::default().matching("acme", "order")), [0; 0]);
    }

    #[test]
    fn others_cost_nothing() {
        // The first ten are what the search is about; the rest are others' tenants, types and prefixes.
        let wishes = |count: usize| -> Vec<Wishes> {
            let other = |number: usize| match number % 4 {
                0 => (Some(format!("tenant{number}")), filters(&["*"])),
                1 => (Some("acme".to_owned()), filters(&[&format!("invoice.n{number}")])),
                2 => (None, filters(&[&format!("invoice.n{number}.*")])),
                _ => (None, filters(&[&format!("order.line.n{number}")])),
            };
            let ours = (0..10).map(|number| match number % 3 {
                0 => (Some("acme".to_owned()), filters(&["order.line.added"])),
                1 => (None, filters(&["order.*"])),
                _ => (None, filters(&["*"])),
            });
            ours.chain((10..count).map(other)).collect()
        };
        let cost = |count: usize| {
            let index = index(&wishes(count));
            let visited = index.visited("acme", "order.line.added");
            let (nodes, matches) =
                visited.fold((0, 0), |(nodes, matches), list| (nodes + 1, matches + list.len()));
            assert_eq!(sorted(index.matching("acme", "order.line.added")), (0..10).collect::<Vec<_>>());
            (nodes, matches)
        };
        let (few, many) = (cost(10), cost(10_000));
        assert_eq!(few.1, many.1);
        // Root and three parts, in two trees; with ten endpoints one of them ends early.
        assert!(many.0 <= 8 && few.0 <= many.0, "{few:?} {many:?}");
    }

    #[test]
    fn a_name_of_many_parts_is_walked_no_further_than_somebody_asked() {
        let index = index(&[(None, filters(&["a.*", "b.c"]))]);
        let deep = "a.".repeat(128);
        assert_eq!(index.visited("t", &deep).count(), 2);
        assert_eq!(index.visited("t", "x.y.z").count(), 1);
    }

    fn any_type() -> impl Strategy<Value = String> {
        proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("ab"), Just("")], 1..5)
            .prop_map(|parts| parts.join("."))
            .prop_filter("a type is not empty", |name| !name.is_empty())
    }

    fn any_filter() -> impl Strategy<Value = EventTypeFilter> {
        let named = (any_type(), any::<bool>()).prop_filter_map("no filter", |(name, below)| {
            EventTypeFilter::parse(&if below { format!("{name}.*") } else { name }).ok()
        });
        prop_oneof![1 => Just(EventTypeFilter::Any), 9 => named]
    }

    proptest! {
        #[test]
        fn the_index_finds_what_asking_each_endpoint_finds(
            wishes in proptest::collection::vec(
                (proptest::option::of("[st]"), proptest::collection::vec(any_filter(), 0..6)), 0..30),
            tenant in "[stu]",
            event_type in any_type(),
        ) {
            let wanted = |(of, filters): &Wishes| {
                of.as_ref().is_none_or(|of| *of == tenant) && filters.iter().any(|one| one.matches(&event_type))
            };
            let naive: Vec<_> = (0..wishes.len()).filter(|id| wanted(&wishes[*id])).collect();
            prop_assert_eq!(sorted(index(&wishes).matching(&tenant, &event_type)), naive);
        }
    }
}
