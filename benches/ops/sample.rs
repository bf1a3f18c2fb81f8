use criterion::{Criterion, criterion_group};
use mpa::ops::sample::{Draw, Sampling, draw_rows, log_probability_rows};
use mpa::tensor::{DType, Indices};

use crate::{as_dtype, measure};

fn all(c: &mut Criterion) {
    for (place, r, vocabulary) in [("demo", 1, 96), ("SmolVLM", 1, 49280), ("SmolVLM, 32 rows", 32, 49280)] {
        let logits = as_dtype(&[r, vocabulary], DType::F32);
        let rows: Indices = (0..r as u32).collect();
        let tokens: Indices = rows.iter().map(|_| 3).collect();
        let bytes = 4 * r * vocabulary;
        for (name, temperature, top_p) in
            [("sample argmax", 0.0, 1.0), ("sample draw", 0.8, 1.0), ("sample draw, top_p 0.9", 0.8, 0.9)]
        {
            let draws = vec![Draw { sampling: Sampling { temperature, top_p }, uniform: 0.5 }; r];
            measure(c, name, place, bytes, || {
                draw_rows(&logits, &rows, &draws).expect("finite logits");
            });
        }
        measure(c, "sample log_probability", place, bytes, || {
            log_probability_rows(&logits, &tokens).expect("finite logits");
        });
    }
}

criterion_group!(benches, all);
