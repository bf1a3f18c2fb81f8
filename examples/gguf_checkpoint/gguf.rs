//! The GGUF container, version 2 or 3 (github.com/ggml-org/ggml, docs/gguf.md), as far as models of the Llama family in f32, f16, Q4_1 and Q8_0 need it.
use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use half::f16;

/// Weights of a block that share a scale.
const BLOCK: usize = 32;

pub enum Value {
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Value>),
}

pub struct Gguf<'a> {
    pub keys: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, Info>,
    data: &'a [u8],
}

pub struct Info {
    /// Outermost first: the reverse of the file's order.
    pub shape: Vec<usize>,
    kind: u32,
    start: usize,
}

/// What is still to be read.
struct Reader<'a>(&'a [u8]);

impl<'a> Gguf<'a> {
    pub fn parse(file: &'a [u8]) -> Result<Gguf<'a>> {
        let mut reader = Reader(file);
        ensure!(reader.take(4)? == b"GGUF", "no GGUF file");
        let version = reader.u32()?;
        ensure!((2..=3).contains(&version), "version {version}, expected 2 or 3");
        let (tensor_count, key_count) = (reader.u64()?, reader.u64()?);
        let mut keys = BTreeMap::new();
        for _ in 0..key_count {
            let key = reader.text()?;
            let kind = reader.u32()?;
            let value = reader.value(kind).with_context(|| key.clone())?;
            keys.insert(key, value);
        }
        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let name = reader.text()?;
            let dims = reader.u32()?;
            let mut shape = (0..dims).map(|_| reader.size()).collect::<Result<Vec<_>>>()?;
            shape.reverse();
            let info = Info { shape, kind: reader.u32()?, start: reader.size()? };
            tensors.insert(name, info);
        }
        let alignment = match keys.get("general.alignment") {
            Some(Value::Int(n)) => usize::try_from(*n)?,
            _ => 32,
        };
        ensure!(alignment.is_power_of_two(), "general.alignment is {alignment}");
        let start = (file.len() - reader.0.len()).next_multiple_of(alignment);
        Ok(Gguf { keys, tensors, data: file.get(start..).context("the file ends before its tensors")? })
    }

    pub fn int(&self, key: &str) -> Result<usize> {
        match self.keys.get(key) {
            Some(Value::Int(n)) => Ok(usize::try_from(*n)?),
            _ => bail!("no whole number {key}"),
        }
    }

    pub fn float(&self, key: &str) -> Result<f64> {
        match self.keys.get(key) {
            Some(Value::Float(x)) => Ok(*x),
            _ => bail!("no number {key}"),
        }
    }

    pub fn text(&self, key: &str) -> Result<&str> {
        match self.keys.get(key) {
            Some(Value::Text(text)) => Ok(text),
            _ => bail!("no text {key}"),
        }
    }

    pub fn list(&self, key: &str) -> Result<&[Value]> {
        match self.keys.get(key) {
            Some(Value::List(list)) => Ok(list),
            _ => bail!("no list {key}"),
        }
    }

    /// The weights of one tensor.
    pub fn decode(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let info = self.tensors.get(name).with_context(|| format!("no tensor {name}"))?;
        let len: usize = info.shape.iter().product();
        type Unpack = fn(&[u8], &mut [f32]);
        let (block, bytes, unpack): (usize, usize, Unpack) = match info.kind {
            0 => (1, 4, f32_block),
            1 => (1, 2, f16_block),
            3 => (BLOCK, 20, q4_1_block),
            8 => (BLOCK, 34, q8_0_block),
            other => bail!("{name}: type {other}, expected f32, f16, Q4_1 or Q8_0"),
        };
        ensure!(len.is_multiple_of(block), "{name}: {len} weights in blocks of {block}");
        let raw = self.data.get(info.start..).and_then(|raw| raw.get(..len / block * bytes));
        let raw = raw.with_context(|| format!("the file ends within {name}"))?;
        let mut out = vec![0.0; len];
        raw.chunks_exact(bytes).zip(out.chunks_exact_mut(block)).for_each(|(raw, out)| unpack(raw, out));
        Ok((info.shape.clone(), out))
    }
}

fn half(raw: &[u8]) -> f32 {
    f16::from_le_bytes([raw[0], raw[1]]).to_f32()
}

fn f32_block(raw: &[u8], out: &mut [f32]) {
    out[0] = f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
}

fn f16_block(raw: &[u8], out: &mut [f32]) {
    out[0] = half(raw);
}

/// d, m, 16 bytes of two weights each: w = d q + m, the first half of the block in the low halves.
fn q4_1_block(raw: &[u8], out: &mut [f32]) {
    let (d, m) = (half(raw), half(&raw[2..]));
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((byte, low), high) in raw[4..].iter().zip(low).zip(high) {
        *low = d * f32::from(byte & 15) + m;
        *high = d * f32::from(byte >> 4) + m;
    }
}

/// d, 32 signed bytes: w = d q.
fn q8_0_block(raw: &[u8], out: &mut [f32]) {
    let d = half(raw);
    raw[2..].iter().zip(out).for_each(|(&q, out)| *out = d * f32::from(q as i8));
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len).context("the file ends within its header")?;
        self.0 = rest;
        Ok(head)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn size(&mut self) -> Result<usize> {
        Ok(usize::try_from(self.u64()?)?)
    }

    fn text(&mut self) -> Result<String> {
        let len = self.size()?;
        Ok(String::from_utf8_lossy(self.take(len)?).into_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 | 7 => Value::Int(u8::from_le_bytes(self.bytes()?).into()),
            1 => Value::Int(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Int(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Int(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Int(self.u32()?.into()),
            5 => Value::Int(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            8 => Value::Text(self.text()?),
            9 => {
                let (kind, len) = (self.u32()?, self.size()?);
                ensure!(kind != 9, "a list of lists");
                Value::List((0..len).map(|_| self.value(kind)).collect::<Result<_>>()?)
            }
            10 => Value::Int(self.u64()?.into()),
            11 => Value::Int(i64::from_le_bytes(self.bytes()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => bail!("a value of type {other}"),
        })
    }
}
