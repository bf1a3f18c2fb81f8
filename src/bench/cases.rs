//! Tensors on a device, and the call of an op on them.

use rayon::prelude::*;

use super::work::Work;
use crate::error::{Error, Result};
use crate::ops::attention::{self, Config, Span, Spans};
use crate::ops::patch_embed::{self, Pixels, Projection};
use crate::ops::sample::{self, Draw, Sampling};
use crate::ops::{add, embedding, gelu, layer_norm, linear, lora, pixel_shuffle, rms_norm, rope, swiglu};
use crate::random;
use crate::tensor::{DType, Device, Indices, Tensor};

pub(super) const EPS: f32 = 1e-5;
/// Numbers drawn; longer tensors repeat them.
const DRAWN: usize = 1 << 20;

/// Makes tensors: random numbers, since zeros run faster than real data on some hardware.
pub(super) struct Maker {
    device: Device,
    /// Random numbers on the device, as they are stored there and in f32.
    block: Tensor,
    block_f32: Tensor,
}

pub(super) type Call = Box<dyn FnMut() -> Result<()>>;

impl Maker {
    pub(super) fn new(device: &Device, dtype: DType) -> Result<Maker> {
        let number = |i| (random::mix(1, &[i as u64]) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let block = Tensor::from_vec(&[DRAWN], (0..DRAWN).into_par_iter().map(number).collect())?;
        let on = |block: Tensor| block.to_device(device);
        Ok(Maker { device: device.clone(), block: on(block.to_dtype(dtype)?)?, block_f32: on(block)? })
    }

    pub(super) fn dtype(&self) -> DType {
        self.block.dtype()
    }

    /// Of random numbers in [-1, 1).
    pub(super) fn random(&self, shape: &[usize]) -> Result<Tensor> {
        repeated(&self.block, shape)
    }

    pub(super) fn random_f32(&self, shape: &[usize]) -> Result<Tensor> {
        repeated(&self.block_f32, shape)
    }

    pub(super) fn randoms<const N: usize>(&self, shape: &[usize]) -> Result<[Tensor; N]> {
        let one = self.random(shape)?;
        // A tensor that shares memory gets its own when it is written; inputs that are the same memory would be read from the cache.
        let mut all = [(); N].map(|()| one.clone());
        for tensor in &mut all[1..] {
            *tensor = self.random(shape)?;
        }
        Ok(all)
    }

    pub(super) fn make(&self, work: &Work) -> Result<Call> {
        match *work {
            Work::Copy { size } => self.copy(size),
            Work::Linear { m, n, k } => {
                let (mut y, x, w) = (self.random(&[m, n])?, self.random(&[m, k])?, self.random(&[n, k])?);
                Ok(Box::new(move || linear::forward(&mut y, &x, &w, None)))
            }
            Work::Lora { m, n, k, r } => {
                let (mut y, mut xa, x) =
                    (self.random(&[m, n])?, self.random(&[m, r])?, self.random(&[m, k])?);
                let (a, b) = (self.random(&[r, k])?, self.random(&[n, r])?);
                Ok(Box::new(move || lora::forward(&mut y, &mut xa, &x, &a, &b, 1e-3)))
            }
            Work::LinearInputBackward { m, n, k } => {
                let (mut dx, dy, w) = (self.random(&[m, k])?, self.random(&[m, n])?, self.random(&[n, k])?);
                Ok(Box::new(move || linear::backward_input(&mut dx, &dy, &w, false)))
            }
            Work::LinearWeightBackward { m, n, k } => {
                let (mut dw, dy, x) =
                    (self.random_f32(&[n, k])?, self.random(&[m, n])?, self.random(&[m, k])?);
                Ok(Box::new(move || linear::backward_weight(&mut dw, &dy, &x)))
            }
            Work::LinearBiasBackward { rows, cols } => {
                let (mut db, dy) = (self.random_f32(&[cols])?, self.random(&[rows, cols])?);
                Ok(Box::new(move || linear::backward_bias(&mut db, &dy)))
            }
            Work::LoraGroup { m, k, r, ref widths } => self.lora_group([m, k, r], widths),
            Work::LoraBackward { m, k, r, ref widths } => self.lora_backward([m, k, r], widths),
            Work::Attention { heads, kv_heads, head_size, causal, ref spans } => {
                let scale = 1.0 / (head_size as f32).sqrt();
                self.attention(Config { heads, kv_heads, head_size, scale, causal }, spans)
            }
            Work::AttentionPaged { .. } | Work::KvCacheStore { .. } => self.paged(work),
            Work::AttentionBackward { heads, kv_heads, head_size, causal, ref spans } => {
                let scale = 1.0 / (head_size as f32).sqrt();
                self.attention_backward(Config { heads, kv_heads, head_size, scale, causal }, spans)
            }
            Work::Rope { tokens, heads, kv_heads, head_size } => {
                self.rope(tokens, [heads, kv_heads], head_size)
            }
            Work::Embedding { tokens, width, vocabulary } => {
                let ids: Indices = (0..tokens).map(|i| (i * 7919 % vocabulary) as u32).collect();
                let (mut out, table) = (self.random(&[tokens, width])?, self.random(&[vocabulary, width])?);
                Ok(Box::new(move || embedding::forward(&mut out, &ids, &table)))
            }
            Work::Splice { tokens, width, features } => {
                let indices: Indices = (0..features as u32).collect();
                let (mut out, x) = (self.random(&[tokens, width])?, self.random(&[features, width])?);
                Ok(Box::new(move || embedding::splice(&mut out, &x, &indices, &indices)))
            }
            Work::PixelShuffle { pictures, patches, width, factor } => {
                let square = factor * factor;
                let x = self.random(&[pictures, patches, width])?;
                let mut out = self.random(&[pictures, patches / square, width * square])?;
                Ok(Box::new(move || pixel_shuffle::forward(&mut out, &x, factor)))
            }
            Work::PatchEmbed { .. } => self.patch_embed(work),
            Work::GemmInt8 { .. }
            | Work::GemmInt8Swiglu { .. }
            | Work::Quantize { .. }
            | Work::RmsNormQuantized { .. } => self.quantised(work),
            Work::Sample { rows, vocabulary, temperature, top_p } => {
                self.sample(rows, vocabulary, Sampling { temperature, top_p })
            }
            _ => self.learning(work),
        }
    }

    fn lora_group(&self, [m, k, r]: [usize; 3], widths: &[usize]) -> Result<Call> {
        let tensors = |&n: &usize| {
            Ok([self.random(&[m, n])?, self.random(&[m, r])?, self.random(&[r, k])?, self.random(&[n, r])?])
        };
        let (x, mut group) = (self.random(&[m, k])?, widths.iter().map(tensors).collect::<Result<Vec<_>>>()?);
        Ok(Box::new(move || {
            let mut adapters = Vec::new();
            for [out, xa, a, b] in &mut group {
                adapters.push(lora::Forward { out, xa, a, b, scale: 1e-3 });
            }
            lora::forward_group(&mut adapters, &x)
        }))
    }

    fn lora_backward(&self, [m, k, r]: [usize; 3], widths: &[usize]) -> Result<Call> {
        let tensors = |&n: &usize| {
            let weights = [self.random(&[r, k])?, self.random(&[n, r])?];
            let grads = [self.random_f32(&[r, k])?, self.random_f32(&[n, r])?];
            Ok((weights, grads, self.random(&[m, n])?, self.random(&[m, r])?))
        };
        let [mut dx, x] = self.randoms(&[m, k])?;
        let mut group = widths.iter().map(tensors).collect::<Result<Vec<_>>>()?;
        Ok(Box::new(move || {
            let mut adapters = Vec::new();
            for ([a, b], [da, db], dy, xa) in &mut group {
                adapters.push(lora::Backward { grads: Some((da, db)), dy, xa, a, b, scale: 1e-3 });
            }
            lora::backward_group(Some(&mut dx), &mut adapters, &x)
        }))
    }

    /// Norms and what works on single elements.
    pub(super) fn plain(&self, work: &Work) -> Result<Call> {
        Ok(match *work {
            Work::RmsNorm { rows, cols } => {
                let ([mut out, x], weight) = (self.randoms(&[rows, cols])?, self.random(&[cols])?);
                Box::new(move || rms_norm::forward(&mut out, &x, &weight, EPS))
            }
            Work::RmsNormResidual { rows, cols } => {
                // The sum grows by the same amount in each run, and stays a number.
                let ([mut out, mut x, residual], weight) =
                    (self.randoms(&[rows, cols])?, self.random(&[cols])?);
                Box::new(move || rms_norm::forward_residual(&mut out, &mut x, &residual, &weight, EPS))
            }
            Work::LayerNorm { rows, cols } => {
                let ([mut out, x], [weight, bias]) = (self.randoms(&[rows, cols])?, self.randoms(&[cols])?);
                Box::new(move || layer_norm::forward(&mut out, &x, &weight, &bias, EPS))
            }
            Work::Add { rows, cols } => {
                let [mut out, x] = self.randoms(&[rows, cols])?;
                Box::new(move || add::forward(&mut out, &x))
            }
            Work::Swiglu { rows, cols } => {
                let [mut out, gate, up] = self.randoms(&[rows, cols])?;
                Box::new(move || swiglu::forward(&mut out, &gate, &up))
            }
            Work::Gelu { rows, cols } => {
                let [mut out, x] = self.randoms(&[rows, cols])?;
                Box::new(move || gelu::forward(&mut out, &x, gelu::Kind::Tanh))
            }
            ref other => return Err(Error::Failure(format!("bench: no case for {}", other.op()))),
        })
    }

    fn copy(&self, size: usize) -> Result<Call> {
        let n = size / self.dtype().size();
        if self.device == Device::Cpu {
            // With all threads, as the ops have them.
            let (from, mut to) = (vec![1.0f32; n], vec![0.0f32; n]);
            return Ok(Box::new(move || {
                to.par_chunks_mut(DRAWN)
                    .zip(from.par_chunks(DRAWN))
                    .for_each(|(to, from)| to.copy_from_slice(from));
                Ok(())
            }));
        }
        let mut both = self.random(&[2, n])?;
        Ok(Box::new(move || both.copy_rows(0, 1, 1)))
    }

    fn attention(&self, config: Config, spans: &[(usize, usize)]) -> Result<Call> {
        let (spans, queries, keys) = placed(spans);
        let Config { heads, kv_heads, head_size, .. } = config;
        let [mut out, q] = self.randoms(&[queries, heads * head_size])?;
        let [k, v] = self.randoms(&[keys, kv_heads * head_size])?;
        Ok(Box::new(move || attention::forward(&mut out, None, &q, &k, &v, &spans, config)))
    }

    fn attention_backward(&self, config: Config, spans: &[(usize, usize)]) -> Result<Call> {
        let (spans, queries, keys) = placed(spans);
        let Config { heads, kv_heads, head_size, .. } = config;
        let [mut dq, q, dout, mut out] = self.randoms(&[queries, heads * head_size])?;
        let [mut dk, mut dv, k, v] = self.randoms(&[keys, kv_heads * head_size])?;
        let mut lse = self.random_f32(&[queries, heads])?;
        attention::forward(&mut out, Some(&mut lse), &q, &k, &v, &spans, config)?;
        Ok(Box::new(move || {
            attention::backward(&mut dq, &mut dk, &mut dv, &dout, &q, &k, &v, &out, &lse, &spans, config)
        }))
    }

    fn patch_embed(&self, work: &Work) -> Result<Call> {
        let &Work::PatchEmbed { pictures, side, patch, frames, merge, width, position } = work else {
            return Err(Error::Failure(format!("bench: no case for {}", work.op())));
        };
        let byte = |i: usize| (random::mix(2, &[i as u64]) >> 56) as u8;
        let values = (0..pictures * side * side * 3).into_par_iter().map(byte).collect();
        let values = Tensor::from_u8(&[pictures, side, side, 3], values)?.to_device(&self.device)?;
        let pixels = Pixels { values, levels: self.random_f32(&[3, 256])? };
        let weight = match frames {
            1 => self.random(&[width, 3, patch, patch])?,
            _ => self.random(&[width, 3, frames, patch, patch])?,
        };
        let patches = (side / patch).pow(2);
        let (bias, at) = (self.random(&[width])?, self.random(&[patches, width])?);
        let mut out = self.random(&[pictures, patches, width])?;
        Ok(Box::new(move || {
            let position = position.then_some(&at);
            let projection = Projection { weight: &weight, bias: Some(&bias), position, merge };
            patch_embed::forward(&mut out, None, &pixels, projection)
        }))
    }

    fn rope(&self, tokens: usize, [heads, kv_heads]: [usize; 2], head_size: usize) -> Result<Call> {
        let (cos, sin) = rope::table(&(0..tokens as u32).collect::<Vec<_>>(), 1e5, head_size)?;
        let (cos, sin) = (cos.to_device(&self.device)?, sin.to_device(&self.device)?);
        let mut q = self.random(&[tokens, heads * head_size])?;
        let mut k = self.random(&[tokens, kv_heads * head_size])?;
        Ok(Box::new(move || rope::forward_pair(&mut q, &mut k, &cos, &sin, [heads, kv_heads])))
    }

    /// With the way of the tokens to main memory.
    fn sample(&self, rows: usize, vocabulary: usize, sampling: Sampling) -> Result<Call> {
        let logits = self.random_f32(&[rows, vocabulary])?;
        let draws: Vec<Draw> =
            (0..rows).map(|i| Draw { sampling, uniform: i as f64 / rows as f64 }).collect();
        let rows: Indices = (0..rows as u32).collect();
        Ok(Box::new(move || sample::draw_rows(&logits, &rows, &draws).map(drop)))
    }
}

/// Spans one after the other, and how many queries and keys they have together.
fn placed(spans: &[(usize, usize)]) -> (Spans, usize, usize) {
    let (mut queries, mut keys) = (0, 0);
    let place = |&(q_len, k_len): &(usize, usize)| {
        let span = Span { q_start: queries, q_len, k_start: keys, k_len };
        (queries, keys) = (queries + q_len, keys + k_len);
        span
    };
    (spans.iter().map(place).collect(), queries, keys)
}

/// The numbers of `block`, over and over.
fn repeated(block: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let len: usize = shape.iter().product();
    let rest = block.slice(0..len % block.len())?;
    let mut parts = vec![block; len / block.len()];
    parts.push(&rest);
    Tensor::concat(&parts)?.reshape(shape)
}
