//! Maps for what is looked up many times a delivery.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

/// A map whose keys are our own: numbers, and names that went through the registry. What producers choose freely is kept
/// under the standard library's hash, which withstands keys made to collide.
pub type FastMap<K, V> = HashMap<K, V, RandomState>;

/// See [`FastMap`].
pub type FastSet<K> = HashSet<K, RandomState>;
