//! Changes to the bytes of a file, and to the values of a JSON document.
use proptest::prelude::*;
use serde_json::{Value, json};

/// One change: where, what, and with which value.
pub type Change = (u64, u8, u64);

pub fn changes() -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec((any::<u64>(), any::<u8>(), any::<u64>()), 1..6)
}

pub fn damage_bytes(bytes: &mut Vec<u8>, changes: &[Change]) {
    const EXTREMES: [u64; 6] = [0, 1, u64::MAX, i64::MAX as u64, 1 << 40, 100_000_001];
    for &(place, kind, value) in changes {
        let at = place as usize % (bytes.len() + 1);
        let end = (at + (value as usize % 64)).min(bytes.len());
        match kind % 7 {
            0 if at < bytes.len() => bytes[at] ^= 1 << (value % 8),
            1 if at < bytes.len() => bytes[at] = value as u8,
            2 => bytes.insert(at, b"{}[],:\"\\0-9e\xff\xc3"[value as usize % 14]),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            5 => bytes.truncate(at),
            _ => {
                let extreme = EXTREMES[value as usize % EXTREMES.len()].to_le_bytes();
                let n = bytes.len().min(8);
                bytes[..n].copy_from_slice(&extreme[..n]);
            }
        }
    }
}

fn strange(value: u64) -> Value {
    let strange = [
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(7),
        json!(value % 1000),
        json!(1u64 << 31),
        json!(u32::MAX),
        json!(1u64 << 53),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(1e300),
        json!(-0.5),
        json!(""),
        json!("x"),
        json!("<image>"),
        json!("\u{0}\u{FDD0}é"),
        json!("(a*)*b|["),
        json!("x".repeat(3000)),
        json!([]),
        json!({}),
        json!([[[[[[]]]]]]),
        json!([0, 1]),
        json!({"type": "Sequence", "normalizers": [], "pretokenizers": [], "decoders": [], "processors": []}),
        json!({"eos_token_id": [1, 2]}),
    ];
    strange[value as usize % strange.len()].clone()
}

/// Walks down as the bits of `place` say, and changes what is there.
pub fn damage_json(mut node: &mut Value, changes: &[Change]) {
    let Some((&(mut place, kind, value), rest)) = changes.split_first() else { return };
    damage_json(node, rest);
    loop {
        let stop = place % 4 == 0;
        place /= 4;
        let children = match node {
            Value::Array(list) => list.len(),
            Value::Object(map) => map.len(),
            _ => 0,
        };
        if children == 0 {
            *node = strange(value);
            return;
        }
        let index = place as usize % children;
        place /= children as u64;
        match node {
            Value::Array(list) if stop && kind % 3 == 0 => {
                list.remove(index);
                return;
            }
            Value::Array(list) if stop && kind % 3 == 1 => {
                let copy = list[index].clone();
                list.push(copy);
                return;
            }
            Value::Object(map) if stop && kind % 3 == 0 => {
                let key = map.keys().nth(index).unwrap().clone();
                map.remove(&key);
                return;
            }
            Value::Array(list) => node = &mut list[index],
            Value::Object(map) => node = map.values_mut().nth(index).unwrap(),
            _ => return,
        }
        if stop && kind % 3 == 2 {
            *node = strange(value);
            return;
        }
    }
}
