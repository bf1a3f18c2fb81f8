//! The metrics against what the public evaluators' rules give by hand.
use mpa::data::evalai::normalise;
use mpa::data::official::{anls, relaxed, vqa_accuracy};
use mpa::data::python;
use mpa::mpa::score::interval;

#[test]
fn answers_are_normalised_as_evalai_does() {
    for (answer, want) in [
        ("The Cat!", "cat"),
        ("a an the", ""),
        ("None, two, TEN", "0 2 10"),
        // Beside a space a mark goes, elsewhere it becomes a space; asked for each mark, of the whole text.
        ("a-b - c", "ab c"),
        ("u-nited", "u nited"),
        ("x/y; z", "x y z"),
        // Commas go first, so that the rule for commas between digits is never reached: `-` becomes a space.
        ("1,000-2", "1000 2"),
        ("p.m.", "pm"),
        ("1.5", "1.5"),
        ("1. 5", "1 5"),
        (".5", ".5"),
        // A digit of any script.
        (".\u{663}", ".\u{663}"),
        (".\u{b2}", "\u{b2}"),
        ("dont Cant", "don't can't"),
        ("it's", "it 's"),
        // `'s` is split off before the table of contractions, which has this word.
        ("let's", "let 's"),
        ("somebody'd", "somebodyd"),
        ("'ows'at", "'ow's'at"),
        // The `-` that goes leaves `'s`, which is split off only before.
        ("ow'-s'at - x", "'ow's'at x"),
        ("y'allll oclock", "y'all'll o'clock"),
        // Lower case first, so that the table's `Im` never matches.
        ("Im", "im"),
        (" a\u{a0}b\u{1c}c\n", "b c"),
        ("what?", "what"),
        ("a:b", "a:b"),
    ] {
        assert_eq!(normalise(answer), want, "{answer:?}");
    }
    // The count of full stops: a flag of value 32.
    assert_eq!(normalise(&".".repeat(40)), ".".repeat(8));
}

#[test]
fn vqa_accuracy_leaves_one_answer_out() {
    let score = |equal: usize, of: usize| {
        let answers: Vec<&str> = (0..of).map(|i| if i < equal { "yes" } else { "no" }).collect();
        vqa_accuracy("Yes.", &answers)
    };
    // By hand: with ten answers, n equal ones give (n min(1, (n-1)/3) + (10-n) min(1, n/3)) / 10.
    for (equal, want) in [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)] {
        assert!((score(equal, 10) - want).abs() < 1e-12, "{equal}: {}", score(equal, 10));
    }
    assert_eq!(score(1, 1), 0.0);
    assert!((score(2, 3) - (2.0 / 3.0 + 2.0 / 3.0) / 3.0).abs() < 1e-12);
}

#[test]
fn anls_has_its_threshold_and_takes_length_from_the_text_as_it_came() {
    for (prediction, answers, want) in [
        ("Hello", &["hello"][..], 1.0),
        ("hxllo", &["other", "hello"][..], 0.8),
        ("ab", &["ac"], 0.5),
        ("abc", &["ade"], 0.0),
        // Distance 2 of the stripped texts, length 8 of the text as it came.
        (" KarmQea", &["Karmez"], 0.75),
        // Two spaces count as one in the distance, as two in the length.
        ("U.S.a AIR  FORCE", &["U.S. AIR FORCE"], 0.9375),
        // In capitals this has six letters: SS for ß.
        ("straß", &["strab"], 1.0 - 1.0 / 6.0),
        ("", &[""], 1.0),
        ("", &["a"], 0.0),
        ("é", &["e"], 0.0),
    ] {
        let got = anls(prediction, answers);
        assert!((got - want).abs() < 1e-12, "{prediction:?} {answers:?}: {got}, expected {want}");
    }
}

#[test]
fn numbers_are_read_as_python_does() {
    let same = |text: &str, want: f64| {
        let got = python::float(text);
        assert!(got.is_some_and(|got| got == want || got.is_nan() && want.is_nan()), "{text:?}: {got:?}");
    };
    for (text, want) in [
        ("1_000", 1000.0),
        (" 1.5\n", 1.5),
        ("\u{b}1\u{c}", 1.0),
        ("+.5", 0.5),
        ("5.", 5.0),
        ("1_0.5e1_0", 10.5e10),
        ("-Infinity", f64::NEG_INFINITY),
        ("nAn", f64::NAN),
        ("1e999", f64::INFINITY),
        ("１２.５", 12.5),
        ("\u{663}\u{a0}", 3.0),
        ("\u{1d7cf}\u{1d7d8}\u{1d7ff}", 109.0),
        ("\u{85}1\u{2003}", 1.0),
    ] {
        same(text, want);
    }
    for text in [
        "", " ", "1__0", "_1", "1_", "1_.5", "1e_5", "0x10", "1,000", "\u{1c}1", "\u{b2}", "1 0", "in_f",
        "$5", "1\0",
    ] {
        assert_eq!(python::float(text), None, "{text:?}");
    }
}

#[test]
fn relaxed_accuracy_lets_numbers_be_off_by_five_percent() {
    for (prediction, answer, want) in [
        ("105", "100", true),
        ("105.01", "100", false),
        ("95", "100", true),
        ("-95", "-100", true),
        ("95", "-100", false),
        ("5%", "0.05", true),
        ("5", "5%", false),
        ("5%%", "5%", true),
        ("%", "%", true),
        ("1_000", "1000", true),
        // An answer of 0 is compared as text.
        ("0.0", "0", false),
        ("0", "0", true),
        // A nan is a number to Python, and near to nothing; so is infinity.
        ("nan", "nan", false),
        ("inf", "inf", false),
        ("1", "inf", false),
        ("Yes", "yes", true),
        ("5G ", "5G", false),
        ("100", "one hundred", false),
    ] {
        assert_eq!(relaxed(prediction, answer), want, "{prediction:?} for {answer:?}");
    }
}

#[test]
fn the_interval_is_that_of_the_mean_and_the_same_each_time() {
    assert_eq!(interval(&[0.25; 7]), [0.25, 0.25]);
    let scores: Vec<f64> = (0..400).map(|i| f64::from(u8::from(i % 4 == 0))).collect();
    let [low, high] = interval(&scores);
    assert_eq!(interval(&scores), [low, high]);
    // The normal interval of 400 draws with p = 1/4: 0.25 ± 0.0424. Percentiles of 1000 resamples stray by about 0.002, and steps are 0.0025.
    assert!((low - 0.2076).abs() < 0.008 && (high - 0.2924).abs() < 0.008, "{low} {high}");
}
