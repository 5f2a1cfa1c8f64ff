// Shows a picture of side x side pixels. Dragging rubs pixels out, or brings them back where the first one is rubbed out.
// `known` has a 1 for each pixel that is kept and a 0 for each other, row by row.
export default {
  props: { source: String, side: { type: Number, default: 1 }, known: { type: String, default: "" } },
  template: `
    <div class="pixel-board" v-if="source">
      <canvas ref="canvas" tabindex="0" role="application" class="checkered" :aria-label="label"
              @pointerdown="grab" @pointermove="drag" @pointerup="drop" @pointercancel="drop" @keydown="press"
              @focus="focused = true; draw()" @blur="focused = false; draw()"></canvas>
      <span class="visually-hidden" aria-live="polite">{{ told }}</span>
    </div>`,
  data() {
    return { x: 0, y: 0, focused: false, told: "" };
  },
  computed: {
    label() {
      return (
        `Your picture, ${this.side} by ${this.side} pixels. ` +
        "Drag to rub pixels out. By keyboard: arrow keys move, space rubs a pixel out or brings it back."
      );
    },
  },
  watch: { source: "load", known: "take", side: "take" },
  mounted() {
    this.take();
    this.load();
  },
  methods: {
    take() {
      if (this.brush) return;
      this.kept = [...this.known].map((character) => character === "1");
      this.draw();
    },
    load() {
      if (!this.source) return;
      const image = new Image();
      image.onload = () => {
        this.image = image;
        this.draw();
      };
      image.src = this.source;
    },
    draw() {
      this.$nextTick(() => {
        const canvas = this.$refs.canvas;
        if (!canvas || !this.image || !this.kept) return;
        const scale = Math.max(8, Math.floor(512 / this.side));
        canvas.width = canvas.height = this.side * scale;
        const context = canvas.getContext("2d");
        context.imageSmoothingEnabled = false;
        context.drawImage(this.image, 0, 0, canvas.width, canvas.height);
        this.kept.forEach((kept, place) => {
          if (!kept) context.clearRect((place % this.side) * scale, Math.floor(place / this.side) * scale, scale, scale);
        });
        if (this.focused) {
          for (const [width, colour] of [[6, "#fff"], [3, "#3949ab"]]) {
            context.lineWidth = width;
            context.strokeStyle = colour;
            context.strokeRect(this.x * scale + 3, this.y * scale + 3, scale - 6, scale - 6);
          }
        }
      });
    },
    at(event) {
      const box = this.$refs.canvas.getBoundingClientRect();
      const place = (start, length, position) =>
        Math.max(0, Math.min(this.side - 1, Math.floor(((position - start) / length) * this.side)));
      return [place(box.left, box.width, event.clientX), place(box.top, box.height, event.clientY)];
    },
    grab(event) {
      event.target.setPointerCapture(event.pointerId);
      const [x, y] = this.at(event);
      this.brush = { kept: !this.kept[y * this.side + x] };
      this.drag(event);
    },
    drag(event) {
      if (!this.brush) return;
      const radius = Math.floor(this.side / 24);
      const [x, y] = this.at(event);
      const from = this.last ?? [x, y];
      const steps = Math.max(1, Math.abs(x - from[0]), Math.abs(y - from[1]));
      for (let step = 0; step <= steps; step++) {
        const [u, v] = [0, 1].map((i) => Math.round(from[i] + (([x, y][i] - from[i]) * step) / steps));
        for (let row = Math.max(0, v - radius); row <= Math.min(this.side - 1, v + radius); row++)
          for (let column = Math.max(0, u - radius); column <= Math.min(this.side - 1, u + radius); column++)
            this.kept[row * this.side + column] = this.brush.kept;
      }
      this.last = [x, y];
      [this.x, this.y] = [x, y];
      this.draw();
    },
    drop() {
      if (!this.brush) return;
      this.brush = this.last = null;
      this.tell();
    },
    press(event) {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const place = () => this.y * this.side + this.x;
      if (event.key in moves) {
        this.x = Math.max(0, Math.min(this.side - 1, this.x + moves[event.key][0]));
        this.y = Math.max(0, Math.min(this.side - 1, this.y + moves[event.key][1]));
      } else if (event.key === " ") {
        this.kept[place()] = !this.kept[place()];
        this.tell();
      } else return;
      event.preventDefault();
      this.told = `Row ${this.y + 1}, column ${this.x + 1}: ${this.kept[place()] ? "kept" : "rubbed out"}`;
      this.draw();
    },
    tell() {
      this.$emit("change", this.kept.map((kept) => (kept ? "1" : "0")).join(""));
    },
  },
};
