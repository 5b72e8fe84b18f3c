/** A typed question comes back as the model's own text, for it is forced into its text stream: it is shown once. */

export class Echo {
  constructor() {
    this.expected = ""; // without spaces, lower case
  }

  expect(text) {
    this.expected += bare(text);
  }

  /** Whether a piece of text is part of what was typed. */
  takes(piece) {
    const letters = bare(piece);
    if (!this.expected || !this.expected.startsWith(letters)) return false;
    this.expected = this.expected.slice(letters.length);
    return true;
  }
}

function bare(text) {
  return text.normalize("NFKC").toLowerCase().replace(/\s/g, "");
}
