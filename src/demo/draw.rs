//! Scenes to pixels, without any dependency, and to PNG files.
use std::path::Path;

use crate::demo::scene::{Bar, Color, Content, SLOTS, Scene, Shape, Style};
use crate::error::{Error, Result};
use crate::models::image::Rgb;

/// Side of a picture.
pub const SIDE: usize = 64;
/// Side of what one picture token sees.
const CELL: usize = 16;
/// Height of one unit of a bar; the axis lies on the last such row.
const UNIT: usize = 8;

type Pixel = [u8; 3];

/// What a style paints with.
struct Palette {
    ground: Pixel,
    grid: Pixel,
    axis: Pixel,
}

impl Palette {
    fn of(style: Style) -> Palette {
        match style {
            Style::Light => Palette { ground: [250, 249, 245], grid: [226, 226, 222], axis: [60, 60, 66] },
            Style::Dark => Palette { ground: [26, 29, 38], grid: [44, 48, 60], axis: [196, 198, 206] },
        }
    }
}

fn paint(color: Color, style: Style) -> Pixel {
    match (color, style) {
        (Color::Red, Style::Light) => [206, 44, 49],
        (Color::Green, Style::Light) => [47, 143, 62],
        (Color::Blue, Style::Light) => [36, 84, 200],
        (Color::Yellow, Style::Light) => [232, 184, 20],
        (Color::Purple, Style::Light) => [134, 56, 168],
        (Color::Cyan, Style::Light) => [32, 170, 190],
        (Color::Red, Style::Dark) => [255, 92, 92],
        (Color::Green, Style::Dark) => [96, 222, 110],
        (Color::Blue, Style::Dark) => [84, 132, 255],
        (Color::Yellow, Style::Dark) => [255, 226, 84],
        (Color::Purple, Style::Dark) => [208, 116, 255],
        (Color::Cyan, Style::Dark) => [84, 232, 244],
    }
}

/// The scene as a SIDE x SIDE picture.
pub fn draw(scene: &Scene) -> Rgb {
    let palette = Palette::of(scene.style);
    let mut canvas = Canvas::new(palette.ground);
    match &scene.content {
        Content::Chart(bars) => draw_chart(&mut canvas, bars, scene.style, &palette),
        Content::Sign { word, color, row } => {
            draw_sign(&mut canvas, word, *color, usize::from(*row), scene.style)
        }
        Content::Shapes(shapes) => draw_shapes(&mut canvas, shapes, scene.style),
    }
    Rgb { width: SIDE, height: SIDE, data: canvas.data }
}

/// Writes `picture` as a PNG file.
pub fn write_png(path: &Path, picture: &Rgb) -> Result<()> {
    let (width, height) = (picture.width as u32, picture.height as u32);
    image::save_buffer_with_format(
        path,
        &picture.data,
        width,
        height,
        image::ExtendedColorType::Rgb8,
        image::ImageFormat::Png,
    )
    .map_err(|e| match e {
        image::ImageError::IoError(source) => Error::io(path, source),
        other => Error::Failure(format!("{}: {other}", path.display())),
    })
}

/// Light bars are filled; dark ones are outlined, with a dimmer inside.
fn draw_chart(canvas: &mut Canvas, bars: &[Option<Bar>; SLOTS], style: Style, palette: &Palette) {
    let bottom = SIDE - UNIT;
    for line in 1..SIDE / UNIT - 1 {
        canvas.fill(0, line * UNIT, SIDE, 1, palette.grid);
    }
    for (slot, bar) in bars.iter().enumerate() {
        let Some(bar) = bar else { continue };
        let height = usize::from(bar.value) * UNIT;
        let color = paint(bar.color, style);
        let (x, y, width) = (slot * CELL + 3, bottom - height, CELL - 6);
        canvas.fill(x, y, width, height, color);
        if style == Style::Dark {
            canvas.fill(x + 2, y + 2, width - 4, height - 2, dim(color));
        }
    }
    canvas.fill(0, bottom, SIDE, 2, palette.axis);
}

/// Light signs are plates with cut-out letters; dark ones are frames with shining letters.
fn draw_sign(canvas: &mut Canvas, word: &str, color: Color, row: usize, style: Style) {
    let color = paint(color, style);
    let (top, height) = (row * CELL - 8, 2 * CELL);
    canvas.fill(0, top, SIDE, height, color);
    let ink = match style {
        Style::Light => [255, 255, 255],
        Style::Dark => {
            canvas.fill(2, top + 2, SIDE - 4, height - 4, [12, 13, 18]);
            color
        }
    };
    for (slot, letter) in word.chars().enumerate() {
        let glyph = glyph(letter);
        for (line, bits) in glyph.iter().enumerate() {
            for column in (0..5).filter(|c| bits >> (4 - c) & 1 == 1) {
                canvas.fill(slot * CELL + 3 + column * 2, row * CELL + 1 + line * 2, 2, 2, ink);
            }
        }
    }
}

fn draw_shapes(canvas: &mut Canvas, shapes: &[Option<(Shape, Color)>; SLOTS], style: Style) {
    for (slot, shape) in shapes.iter().enumerate() {
        let Some((shape, color)) = *shape else { continue };
        let (left, top) = (slot % 2 * 2 * CELL, slot / 2 * 2 * CELL);
        let color = paint(color, style);
        for y in 0..2 * CELL {
            for x in 0..2 * CELL {
                // Twice the distance from the middle, so that the middle lies between two pixels.
                let (dx, dy) = (2 * x as i32 - 31, 2 * y as i32 - 31);
                if !inside(shape, dx, dy, 22) {
                    continue;
                }
                let edge = style == Style::Dark && inside(shape, dx * 22 / 15, dy * 22 / 15, 22);
                canvas.fill(left + x, top + y, 1, 1, if edge { dim(color) } else { color });
            }
        }
    }
}

/// Whether a point at (dx, dy) from the middle lies in the shape of radius `r`.
fn inside(shape: Shape, dx: i32, dy: i32, r: i32) -> bool {
    match shape {
        Shape::Circle => dx * dx + dy * dy <= r * r,
        Shape::Square => dx.abs() <= r - 4 && dy.abs() <= r - 4,
        Shape::Triangle => (-r..=r - 3).contains(&dy) && 2 * dx.abs() <= dy + r,
        Shape::Cross => dx.abs().max(dy.abs()) <= r && dx.abs().min(dy.abs()) <= r / 3,
    }
}

fn dim(color: Pixel) -> Pixel {
    color.map(|c| c / 3)
}

struct Canvas {
    data: Vec<u8>,
}

impl Canvas {
    fn new(ground: Pixel) -> Canvas {
        Canvas { data: ground.repeat(SIDE * SIDE) }
    }

    /// A filled rectangle, clipped to the picture.
    fn fill(&mut self, x: usize, y: usize, width: usize, height: usize, color: Pixel) {
        for row in y..(y + height).min(SIDE) {
            for column in x..(x + width).min(SIDE) {
                let at = (row * SIDE + column) * 3;
                self.data[at..at + 3].copy_from_slice(&color);
            }
        }
    }
}

/// A letter in 5 x 7 dots, one row a number, the leftmost dot the highest bit. Letters that no word has are blank.
fn glyph(letter: char) -> [u8; 7] {
    match letter {
        'a' => [0b01110, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001],
        'c' => [0b01111, 0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b01111],
        'e' => [0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b11111],
        'f' => [0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b10000],
        'i' => [0b01110, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
        'k' => [0b10001, 0b10010, 0b10100, 0b11000, 0b10100, 0b10010, 0b10001],
        'l' => [0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b11111],
        'n' => [0b10001, 0b11001, 0b10101, 0b10101, 0b10101, 0b10011, 0b10001],
        'o' => [0b01110, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b01110],
        'p' => [0b11110, 0b10001, 0b10001, 0b11110, 0b10000, 0b10000, 0b10000],
        'r' => [0b11110, 0b10001, 0b10001, 0b11110, 0b10100, 0b10010, 0b10001],
        's' => [0b01111, 0b10000, 0b10000, 0b01110, 0b00001, 0b00001, 0b11110],
        't' => [0b11111, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100],
        'w' => [0b10001, 0b10001, 0b10001, 0b10101, 0b10101, 0b11011, 0b10001],
        'x' => [0b10001, 0b01010, 0b01010, 0b00100, 0b01010, 0b01010, 0b10001],
        _ => [0; 7],
    }
}
