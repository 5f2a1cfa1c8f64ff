// Shows a picture with a square that can be moved (pointer, arrow keys) and sized (slider, + and -).
// Left and top are parts of the picture's width and height, side is a part of its shorter side.
export default {
  props: { source: String, ratio: { type: Number, default: 1 }, square: Object },
  template: `
    <div class="square-chooser" v-if="source">
      <div class="square-chooser-picture" ref="picture" :style="{ aspectRatio: ratio }">
        <img :src="source" alt="Your picture" draggable="false" />
        <div class="square-chooser-square" tabindex="0" role="group"
             aria-label="The part that is used. Arrow keys move it, plus and minus change its size."
             :style="{ left: percent(left), top: percent(top), width: percent(width), height: percent(height) }"
             @pointerdown="grab" @pointermove="drag" @pointerup="drop" @pointercancel="drop" @keydown="press"></div>
      </div>
      <label class="slider-row"><span>Size of the part</span>
        <input type="range" min="5" max="100" :value="Math.round(side * 100)"
               @input="resize($event.target.value / 100)" @change="tell" /></label>
    </div>`,
  data() {
    return { left: 0, top: 0, side: 1, grabbed: null };
  },
  computed: {
    width() {
      return this.ratio > 1 ? this.side / this.ratio : this.side;
    },
    height() {
      return this.ratio > 1 ? this.side : this.side * this.ratio;
    },
  },
  watch: {
    square: { handler: "reset", immediate: true, deep: true },
  },
  methods: {
    percent: (part) => `${part * 100}%`,
    reset() {
      if (this.square && !this.grabbed) Object.assign(this, this.square);
    },
    move(left, top) {
      this.left = Math.max(0, Math.min(1 - this.width, left));
      this.top = Math.max(0, Math.min(1 - this.height, top));
    },
    resize(side) {
      const [x, y] = [this.left + this.width / 2, this.top + this.height / 2];
      this.side = Math.max(0.05, Math.min(1, side));
      this.move(x - this.width / 2, y - this.height / 2);
    },
    grab(event) {
      event.target.setPointerCapture(event.pointerId);
      this.grabbed = { x: event.clientX, y: event.clientY, left: this.left, top: this.top };
    },
    drag(event) {
      if (!this.grabbed) return;
      const box = this.$refs.picture.getBoundingClientRect();
      this.move(
        this.grabbed.left + (event.clientX - this.grabbed.x) / box.width,
        this.grabbed.top + (event.clientY - this.grabbed.y) / box.height,
      );
    },
    drop() {
      if (!this.grabbed) return;
      this.grabbed = null;
      this.tell();
    },
    press(event) {
      const step = event.shiftKey ? 0.1 : 0.02;
      const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
      if (event.key in moves) this.move(this.left + moves[event.key][0], this.top + moves[event.key][1]);
      else if (event.key === "+" || event.key === "=") this.resize(this.side + 0.05);
      else if (event.key === "-") this.resize(this.side - 0.05);
      else return;
      event.preventDefault();
      clearTimeout(this.told);
      this.told = setTimeout(() => this.tell(), 250);
    },
    tell() {
      this.$emit("choose", { left: this.left, top: this.top, side: this.side });
    },
  },
};
